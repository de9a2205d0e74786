"""What people read of a pretraining: its first line, the line of an evaluation, the card of the encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.pretrain import Run

HEADER = "    step  M tokens     loss  dev loss  perplexity  accuracy  tokens/s  seconds"


def run_line(run: Run) -> str:
    """What is about to be learned from, by what."""
    corpus = run.corpus
    parameters = sum(p.numel() for p in run.model.parameters()) / 1e6
    unread = "" if corpus.is_whole else " (the budget leaves no time to read the others)"
    return (
        f"{corpus.texts:,} texts{unread}, {len(corpus.train.tokens) / 1e6:.2f} M tokens to train on, "
        f"{len(corpus.held_out.tokens) / 1e6:.2f} M held out; "
        f"{parameters:.1f} M parameters, {run.device} in {run.precision}"
    )


def evaluation_line(history: Sequence[dict[str, float]]) -> str:
    """The last row, under its header if it is the first."""
    row = history[-1]
    line = (
        f"{row['step']:8,.0f}  {row['tokens'] / 1e6:8.2f}  {row['loss']:7.4f}  {row['dev_loss']:8.4f}"
        f"  {row['dev_perplexity']:10.2f}  {row['dev_accuracy']:8.4f}  {row['tokens_per_s']:8,.0f}"
        f"  {row['seconds']:7.0f}"
    )
    return f"{HEADER}\n{line}" if len(history) == 1 else line


def result_text(result: dict[str, Any]) -> str:
    """The last figures, for a terminal."""
    return (
        f"hidden tokens of held-out texts: {result['dev_accuracy']:.1%} guessed, loss {result['dev_loss']:.4f}, "
        f"perplexity {result['dev_perplexity']:.2f}"
    )


def card(name: str, run: Run, history: Sequence[dict[str, float]], made_by: dict[str, Any]) -> str:
    """README.md of the encoder, in the Hugging Face card format."""
    config = run.model.config
    init = made_by["init"]
    origin = f"continued from {init['folder']} ({init['version']})" if init else "trained from scratch"
    rows = [
        f"| {r['step']:,.0f} | {r['tokens'] / 1e6:.2f} | {r['loss']:.4f} | {r['dev_loss']:.4f} | "
        f"{r['dev_perplexity']:.2f} | {r['dev_accuracy']:.4f} |"
        for r in history
    ]
    settings = ", ".join(f"{key}={value}" for key, value in made_by["config"].items() if value is not None)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: fill-mask",
            "---",
            f"# {name}",
            "",
            f"An encoder of the {config.family} family, {origin} by Heed {made_by['heed']} with masked language",
            f"modelling: {config.layers} layers, {config.width} wide, a vocabulary of {config.vocab_size:,} tokens,",
            f"texts of up to {config.max_tokens} tokens. It is an `--init` of `heed train`, and no classifier.",
            "",
            "## Figures",
            f"Whole words are hidden, {run.config.mask_share:.0%} of them. Dev is a sample of the fiftieth of the",
            "texts that was held out by hash; accuracy is the share of hidden tokens that were guessed.",
            "",
            "| step | M tokens | loss | dev loss | dev perplexity | dev accuracy |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "## Text",
            f"{made_by['texts']:,} texts, {made_by['skipped']} bad rows left out.",
            "",
            "| file | SHA-256 |",
            "| --- | --- |",
            *(f"| {data['file']} | `{data['sha256'][:16]}` |" for data in made_by["data"]),
            "",
            "## Training",
            f"`{made_by['command']}` ({made_by['seconds']} s)",
            "",
            f"Settings: {settings}.",
            "",
        ]
    )
