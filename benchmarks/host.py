"""What the host costs: Heed with next to no model against an echo, and against @serve.batch, on the same ingress.

    python benchmarks/host.py --texts FILE [--connections 1,32,128] [--rounds 3] [--seconds 5] [--json FILE]

  echo, echo-fastapi   Ray Serve and HAProxy by themselves, without and with pydantic
  heed-null            Heed with a predictor that answers constants: validate, tokenize, queue, serialize
  heed-tiny            Heed with a random encoder of 2 layers, 128 wide
  ray                  @serve.batch around transformers with that same encoder

Rounds and the load are those of benchmarks/serving.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from environments import default_folder
from peers import echo, heed_null, ray
from running import Texts
from serving import Contender, Level, Results, as_json, is_resolved, one_round, read, table
from timing import markdown

from model.bundle import load_bundle, save_bundle
from model.encoder import Classifier, EncoderConfig
from service.bench import numbers, positive, positive_float
from service.launch import leave_on_signal
from service.settings import SENTIMENT

TINY = {"layers": 2, "width": 128, "heads": 2, "feed_forward": 512}
CLEARLY = 10.0
PAIRS = [("heed-null", "echo"), ("heed-tiny", "ray")]


def tiny_bundle(folder: Path) -> Path:
    """A random encoder with the tokenizer and the labels of the model that comes with Heed."""
    torch.manual_seed(0)
    sentiment = load_bundle(SENTIMENT)
    config = EncoderConfig(vocab_size=sentiment.tokenizer.vocab_size, **TINY)  # type: ignore[arg-type]
    assert sentiment.manifest is not None
    manifest = replace(sentiment.manifest, name="tiny", max_tokens=config.max_tokens, reference={})
    classifier = Classifier(config, len(sentiment.labels)).eval()
    with torch.no_grad():
        classifier.head.out.bias[0] += CLEARLY  # random logits are near each other, and would turn with the precision
    save_bundle(folder, classifier, sentiment.tokenizer, manifest)
    return folder


def quotients(results: Results, levels: list[Level]) -> list[str]:
    """The two ratios that matter, at each level."""
    lines = []
    for (name, other), level in itertools.product(PAIRS, levels):
        if level in results.rounds.get(name, {}) and level in results.rounds.get(other, {}):
            a, b = ([one.rate for one in results.rounds[who][level]] for who in (name, other))
            ratio = statistics.median(a) / statistics.median(b)
            resolved = "resolved" if is_resolved(a, b) or is_resolved(b, a) else "not resolved"
            lines.append(f"- {name} / {other}, {level[0]} connections: {ratio:.2f} ({resolved})")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE", help="a data file with text")
    parser.add_argument("--connections", type=numbers, default=[1, 32, 128], metavar="N,...")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=positive_float, default=5.0, help="of each level in a round")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    leave_on_signal()  # with what it has started
    levels = [(connections, 1) for connections in args.connections]
    results = Results()
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny_bundle(Path(folder) / "tiny")
        texts = read(args.texts, bundle)
        unchecked = Texts(texts.file, texts.texts, [])  # constants and echoes are not right about anything
        served_by_ray = next(peer for peer in ray.PEERS if peer.name == "ray")
        order = [Contender(peer, bundle) for peer in (*echo.PEERS, *heed_null.PEERS, served_by_ray)]
        for _ in range(args.rounds):
            for contender in order:
                what = texts if contender.peer.name in ("heed-tiny", "ray") else unchecked
                one_round(results, [contender], levels, what, args.seconds, default_folder())
            order = order[1:] + order[:1]
    for level in levels:
        print(f"**{level[0]} connections**\n\n{markdown(table(results, level))}\n")
    print("\n".join(quotients(results, levels)))
    if args.json:
        args.json.write_text(json.dumps(as_json(results), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
