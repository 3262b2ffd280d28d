import pytest
import torch
from PIL import Image

from et.inpainting.data import InpaintingData
from et.inpainting.folders import ImageFolders
from et.inpainting.photos import Photos
from et.utils.errors import UserError, unwrapped


@pytest.fixture
def tree(tmp_path):
    """A small ImageNet-like tree: 5 training and 3 validation images."""
    for split, count in (("train", 5), ("val", 3)):
        for number in range(count):
            folder = tmp_path / split / f"n0{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 30), 50 + number).convert("RGB").save(folder / f"{number}.JPEG")
    return tmp_path


def folder_data(tree, **arguments):
    return InpaintingData(ImageFolders(str(tree), 16), 16, 4, batch_size=2, **arguments)


def collect(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


@pytest.mark.parametrize("workers", (0, 2))
def test_batches_of_a_folder(tree, workers):
    data = folder_data(tree, num_workers=workers)
    train, val = collect(data.train_dataloader()), collect(data.val_dataloader())
    assert train["image"].shape == (4, 3, 16, 16)  # the fifth image would not fill a batch
    assert val["image"].shape == (3, 3, 16, 16) and sorted(val["index"].tolist()) == [0, 1, 2]
    assert (train["occluded"].sum(1) == round(16 * 100 / 196)).all()


def test_training_samples_depend_on_seed_and_epoch_alone(tree):
    first = collect(folder_data(tree, seed=1).train_dataloader(), epoch=3)
    again = collect(folder_data(tree, seed=1, num_workers=2).train_dataloader(), epoch=3)
    other = collect(folder_data(tree, seed=1).train_dataloader(), epoch=4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], other["image"])


def test_images_kept_in_memory_are_the_same_images(tree):
    kept = InpaintingData(ImageFolders(str(tree), 16, keep_in_memory=True), 16, 4, batch_size=2)
    read = folder_data(tree)
    for name in ("train_dataloader", "val_dataloader"):
        for epoch in (0, 1):  # the second time from memory
            a, b = collect(getattr(kept, name)(), epoch), collect(getattr(read, name)(), epoch)
            assert torch.equal(a["image"], b["image"])
    assert len(kept.source.kept_eval) == 3


def test_evaluation_masks_depend_on_the_image_and_mask_number_alone(tree):
    data = folder_data(tree, mask_seeds=4)
    small, large = (
        collect(data.test_dataloader()),
        collect(InpaintingData(data.source, 16, 4, batch_size=12, mask_seeds=4).test_dataloader()),
    )
    assert torch.equal(small["masked"], large["masked"])
    assert small["mask_seed"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert not torch.equal(small["masked"][0], small["masked"][3])


def test_appendix_b_counts_at_full_size():
    data = InpaintingData(Photos(224, 4), 224, 16)
    assert (data.num_patches, data.num_occluded, data.num_kept) == (196, 100, 10)


@pytest.mark.parametrize("counts", ((17, 0), (4, 5), (0, 0), (4, 4), (-1, 0), (4, -1)))
def test_counts_that_do_not_fit_are_refused(tree, counts):
    with pytest.raises(UserError, match="must hold"):
        folder_data(tree, num_occluded=counts[0], num_kept=counts[1])


def test_missing_folder_names_folder_and_address(tmp_path):
    with pytest.raises(UserError, match=r"train, which is not there.*example\.org"):
        ImageFolders(str(tmp_path), 16, address="https://example.org")


def test_empty_validation_set(tree):
    for path in (tree / "val").rglob("*.JPEG"):
        path.unlink()
    with pytest.raises(UserError, match=r"no image in .*val"):
        folder_data(tree)


def test_corrupt_image_names_its_file(tree):
    path = next((tree / "val").rglob("*.JPEG"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=path.name):
        collect(folder_data(tree).val_dataloader())


def test_a_tree_of_other_size_than_the_published_one_is_a_variant(tree):
    assert ImageFolders(str(tree), 16, expected=(5, 3)).describe()["variant"].startswith("exact in its counts")
    with pytest.warns(UserWarning, match="is not the published imagefolder"):
        assert ImageFolders(str(tree), 16, expected=(9469, 3925)).describe()["variant"] == "5 + 3 images"


@pytest.mark.data
def test_imagenette_batches(data_root):
    source = ImageFolders(str(data_root / "imagenette"), 64)
    data = InpaintingData(source, 64, 8, batch_size=16)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (16, 3, 64, 64)
    assert abs(batch["image"].mean()) < 1 and 0.3 < batch["image"].std() < 2


@pytest.mark.parametrize("name", ["batch_size", "mask_seeds", "channels"])
def test_sizes_that_are_none_are_refused_by_name(tree, name):
    arguments = {"batch_size": 2, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, not 0"):
        InpaintingData(ImageFolders(str(tree), 16), 16, 4, **arguments)


def test_channels_are_those_of_the_images(tree):
    with pytest.raises(UserError, match="the images of imagefolder have 3"):
        folder_data(tree, channels=1)


def test_a_bad_image_in_a_loader_process_is_told_as_such(tree):
    path = next((tree / "val").rglob("*.JPEG"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        collect(folder_data(tree, num_workers=1).val_dataloader())
    told = str(unwrapped(caught.value))
    assert told.startswith(f"cannot read the image {path}") and "Traceback" not in told
