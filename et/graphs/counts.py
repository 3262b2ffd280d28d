"""Numbers of features and classes of a data set, compared with those that the configuration states."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from et.graphs.batch import GraphBatch
from et.utils.errors import UserError

OWN_SOURCES = ("tu", "file")  # their files hold graphs of all classes
MOST_CLASSES = 20  # so many different targets may be classes that were saved as real numbers


def counts_of(graphs: GraphBatch, name: str, source: str, num_classes: int | None) -> dict[str, int]:
    """``num_features``, ``num_edge_features`` and ``num_classes`` of ``graphs``.

    Args:
        graphs: The data set.
        name: Name of the data set in error messages.
        source: Source of the data set. Generated and official data may lack a class if only few graphs are read.
        num_classes: Number in the configuration, used for generated and official data. None if it states none.

    Raises:
        UserError: Labels of the user's own data are not 0, 1, ... without a gap, or are all equal.
    """
    edge_features = 0 if graphs.edge_attr is None else graphs.edge_attr.shape[1]
    classes = _count_classes(graphs, name, source, num_classes)
    return {"num_features": graphs.x.shape[1], "num_edge_features": edge_features, "num_classes": classes}


def _count_classes(graphs: GraphBatch, name: str, source: str, num_classes: int | None) -> int:
    """Number of classes; 1 for a regression."""
    if graphs.y.is_floating_point():
        _warn_of_classes(graphs.y, name, source)
        return 1
    classes = graphs.y.unique().tolist()
    if source not in OWN_SOURCES:
        return classes[-1] + 1 if num_classes is None else num_classes
    if num_classes == 1:
        raise UserError(
            f"the targets of {name} are whole numbers, which are classes: leave data.num_classes out, or save those of "
            "a regression as real ones (y.float())"
        )
    if len(classes) == 1:
        raise UserError(
            f"every {graphs.level} of {name} is of class {classes[0]}: there is nothing to tell apart; check the "
            "labels, of which a classification needs two or more"
        )
    if classes != list(range(len(classes))):
        raise UserError(
            f"{name} has {graphs.level} labels {_first(classes)}: number its {len(classes)} classes "
            f"0 .. {len(classes) - 1} without a gap (torch.unique(labels, return_inverse=True) does)"
        )
    return len(classes)


def _warn_of_classes(targets: Tensor, name: str, source: str) -> None:
    """Warn about real targets that look like classes: the few numbers 0, 1, ... without a gap."""
    values = targets.unique()
    like_classes = 1 < len(values) <= MOST_CLASSES and torch.equal(values, torch.arange(len(values)).to(values))
    if source in OWN_SOURCES and like_classes:
        warnings.warn(
            f"the targets of {name} are the numbers 0 .. {len(values) - 1}, saved as real ones: they are taken for a "
            "regression. If they are classes, save whole numbers (y.long())",
            stacklevel=2,
        )


def check_counts(graphs: GraphBatch, name: str, source: str, stated: Mapping[str, int | None]) -> dict[str, int]:
    """Counts of ``graphs``, compared with the configuration.

    Args:
        graphs: The data set.
        name: Name of the data set in error messages.
        source: Source of the data set.
        stated: Counts in the configuration by key; None agrees with any number.

    Raises:
        UserError: A feature is not finite, or a count differs from the stated one. The message lists all correct
            counts.
    """
    for key, values in (("node features", graphs.x), ("edge features", graphs.edge_attr), ("targets", graphs.y)):
        if values is not None and not torch.isfinite(values).all():
            raise UserError(f"the {key} of {name} contain NaN or infinite values: correct the files")
    found = counts_of(graphs, name, source, stated["num_classes"])
    wrong = {key: count for key, count in found.items() if stated[key] not in (None, count)}
    if wrong:
        raise UserError(_contradiction(graphs, name, source, stated, wrong))
    if not graphs.y.is_floating_point():
        low, high, classes = int(graphs.y.min()), int(graphs.y.max()), found["num_classes"]
        if low < 0 or high >= classes:
            raise UserError(
                f"{name} has {graphs.level} labels {low} .. {high}, the configuration says num_classes={classes}: "
                f"labels must be 0 .. {classes - 1}; check the label files"
            )
    return found


def _contradiction(
    graphs: GraphBatch, name: str, source: str, stated: Mapping[str, int | None], wrong: Mapping[str, int]
) -> str:
    """Error message about the counts ``wrong``: the correct numbers, by key."""
    settings = " ".join(f"data.{key}={count}" for key, count in wrong.items())
    says = ", ".join(f"{key}={stated[key]}" for key in wrong)
    text = f"the configuration does not fit {name}, it says {says}: set {settings}"
    if "num_classes" in wrong and graphs.y.is_floating_point():
        text += ". Its targets are real numbers, those of a regression: save classes as whole ones (y.long())"
    if source == "tu" and wrong.keys() & {"num_features", "num_edge_features"}:
        text += (
            ". A label out of range in the files adds columns, a missing file of labels or attributes takes some away: "
            "check them first"
        )
    return text


def _first(values: Sequence[int]) -> str:
    """Text with the first few of ``values``."""
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
