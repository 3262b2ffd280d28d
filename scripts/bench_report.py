"""Table and plot of what scripts/bench.py measured: ``python scripts/bench.py --parts render``."""

from __future__ import annotations

from pathlib import Path

NAMES = {
    "vit": "ViT-Base, timm", "et": "**ET-Base**", "et_checkpoint": "ET-Base, steps checkpointed",
    "et_compiled": "ET-Base, torch.compile", "autograd": "ET by `autograd.grad` of its energy",
    "func": "ET by `torch.func.grad` of its energy",
}  # fmt: skip


def table(record: dict) -> str:
    """Markdown: a row a form: median (fastest-slowest) seconds, and ratios of medians."""
    lines = []
    parts = {name: record[name] for name in ("fp32", "bf16", "compile") if name in record}
    if "bf16" in record.get("compile", {}):
        parts["compile, bf16"] = record["compile"] | record["compile"]["bf16"]
    for part, found in parts.items():
        training, inference = found["training"], found.get("inference", {"rows": {}})
        lines += [
            "", f"{part}, {describe(training['size'])}; {describe_machine(found)}", "",
            f"| | forward, backward | of {NAMES['vit']} | of matmul throughput "
            f"| and AdamW | of {NAMES['vit']} | inference | of {NAMES['vit']} |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        for form, row in training["rows"].items():
            other = inference["rows"].get(form)
            updated, of = row["updated_seconds"], training["rows"]["vit"]
            cells = [time_cell(row), ratio(row, of), f"{row['gflops'] / found['product_gflops']:.2f}"]
            cells += [f"{updated:.2f} s", f"{updated / of['updated_seconds']:.2f}"]
            cells += [time_cell(other), ratio(other, inference["rows"]["vit"])] if other else ["", ""]
            lines.append(f"| {NAMES[form]} | " + " | ".join(cells) + " |")
    if "memory" in record:
        lines += memory_table(record["memory"])
    return "\n".join(lines)


def memory_table(memory: dict) -> list[str]:
    """Rows of MiB, and ratios to the ViT's: resident in training and inference, and held by tensors in training."""
    titles = {
        "base": "resident, training", "base_bf16": "resident, training in bfloat16",
        "inference": "resident, inference", "tensors": "tensors, training",
    }  # fmt: skip
    kinds = [kind for kind in titles if memory.get(kind)]
    lines = ["", "| MiB | " + " | ".join(f"{titles[kind]} | of ViT" for kind in kinds) + " |"]
    lines.append("|---" + "|---:|---:" * len(kinds) + "|")
    for form in memory["tensors"]:
        cells = []
        for kind in kinds:
            found = memory[kind].get(form)
            cells += ["", ""] if found is None else [f"{found / 2**20:.0f}", f"{found / memory[kind]['vit']:.2f}"]
        lines.append(f"| {NAMES[form]} | " + " | ".join(cells) + " |")
    return lines


def describe(size: dict) -> str:
    return f"T {size['steps']}, batch {size['batch']}, {size['tokens']} tokens, D {size['dim']}"


def describe_machine(part: dict) -> str:
    machine, rate = part["environment"], part.get("product_gflops")
    products = f", {rate:.0f} GFLOP/s in products alone" if rate else ""
    cpu = f"{machine['cpu']} ({machine['capability']}), {machine['threads']} threads"
    return f"{cpu}{products}, {part['rounds']} rounds"


def time_cell(row: dict) -> str:
    return f"{row['seconds']:.2f} s ({row['spread'][0]:.2f}-{row['spread'][1]:.2f})"


def ratio(row: dict, base: dict) -> str:
    return f"{row['seconds'] / base['seconds']:.2f}"


def plot(record: dict, path: Path) -> None:
    """Time and memory of ET and ViT against T, N, batch and D."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    if "scaling" not in record:
        return
    keys = {"T": "steps", "N": "tokens", "batch": "batch", "D": "dim"}
    labels = {"T": "steps T (blocks of the ViT)", "N": "tokens N", "batch": "batch", "D": "width D"}
    figure, axes = pyplot.subplots(2, 4, figsize=(12, 6), sharex="col", sharey="row", layout="constrained")
    for column, (axis, key) in enumerate(keys.items()):
        runs = record["scaling"][axis]
        places = [run["size"][key] for run in runs]
        for form, color in (("vit", "tab:gray"), ("et", "tab:red")):
            axes[0, column].plot(
                places, [run["rows"][form]["spread"][0] for run in runs], "o-", color=color, label=form
            )
            gib = [run["bytes"][form] / 2**30 for run in runs]
            axes[1, column].plot(places, gib, "o-", color=color)
            if all("in_bf16" in run for run in runs):
                halves = [run["in_bf16"] for run in runs]
                axes[0, column].plot(places, [run["rows"][form]["spread"][0] for run in halves], "o--", color=color)
                axes[1, column].plot(places, [run["bytes"][form] / 2**30 for run in halves], "o--", color=color)
        for row in range(2):
            axes[row, column].set(xscale="log", yscale="log")
            axes[row, column].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes[row, column].yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes[row, column].yaxis.set_minor_formatter(NullFormatter())
            axes[row, column].grid(alpha=0.3)
        axes[1, column].set_xlabel(labels[axis])
        axes[1, column].set_xticks(places, [str(place) for place in places])
        axes[1, column].minorticks_off()
    axes[0, 0].set_ylabel("training step (fastest), s")
    axes[1, 0].set_ylabel("memory of a step, GiB")
    names = [f"{name}{half}" for name in ("ViT, timm", "ET") for half in ("", ", bfloat16")]
    names = names if len(axes[0, 0].lines) == 4 else names[::2]
    axes[0, 0].legend(axes[0, 0].lines, names, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
