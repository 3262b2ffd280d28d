"""Where the project's own folders are: at the top of a checkout, or inside an installed package."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

#: True if the package is imported from a checkout, False if it is installed as a wheel.
IN_CHECKOUT = (_PACKAGE.parent / "conf" / "train.yaml").is_file() and (_PACKAGE.parent / "train.py").is_file()
#: What commands write to by default: the checkout, or the working directory. Never the folder of installed packages.
ROOT = _PACKAGE.parent if IN_CHECKOUT else Path.cwd()
CONF = _PACKAGE.parent / "conf" if IN_CHECKOUT else _PACKAGE / "conf"
EXPERIMENTS = ROOT / "experiments"


def command(name: str) -> str:
    """How to call the command ``name``: ``python train.py`` in a checkout, ``et-train`` of an installed package."""
    return f"python {name}.py" if IN_CHECKOUT else f"et-{name}"
