"""What tests of the report share: claims of every kind on made-up records, in words that try to get out."""

import json
from pathlib import Path

from claim_records import folder, records

from normbench.report.claims.document import load
from normbench.report.claims.judge import Judged, Stored, judge_all

HOSTILE = (
    "</script><script>alert(1)</script><b id='x'>&amp; \"quoted\" | `code` *bold* [link](javascript:alert(1))"
)
QUOTED = json.dumps(HOSTILE)
CLAIMS = f"""\
document: "T<i>"
title: {QUOTED}
claims:
  - id: "greater"
    says: {QUOTED}
    original: {QUOTED}
    source: [{QUOTED}, "https://example.org/a?b=1&c=2"]
    scope: {QUOTED}
    experiment: made_up.yaml
    test:
      {{kind: greater, a: {{norm: group, batch_size: 2}}, b: {{norm: batch, batch_size: 2}}, margin: 1,
        margin_from: {QUOTED}}}
    published:
      - {{label: {QUOTED}, source: {QUOTED}, at: {{a: 70.0, b: 51.5}}}}
  - id: "less"
    says: BN is worse at a small batch.
    source: [T]
    experiment: made_up.yaml
    test: {{kind: less, a: {{norm: group, batch_size: 16}}, b: {{norm: batch, batch_size: 16}}, margin: 1}}
  - id: "equivalent"
    says: GN is as good at 2 as at 4.
    source: [T]
    experiment: made_up.yaml
    test:
      {{kind: equivalent, a: {{norm: group, batch_size: 2}}, b: {{norm: batch, batch_size: 2}}, margin: 1}}
  - id: "flat"
    says: GN does not depend on the batch size.
    source: [T]
    experiment: made_up.yaml
    test: {{kind: flat, a: {{norm: group}}, along: batch_size, margin: 5}}
  - id: "crossover"
    says: GN is better below a batch size.
    source: [T]
    experiment: made_up.yaml
    test: {{kind: crossover, a: {{norm: group}}, b: {{norm: batch}}, along: batch_size}}
    published:
      - {{label: somebody, source: a paper, at: {{"2": 20.0, "4": 1.5, "8": -9.0, "16": -9.5}}}}
  - id: "knee"
    says: BN loses at a small batch.
    source: [T]
    experiment: made_up.yaml
    test: {{kind: knee, a: {{norm: batch}}, along: batch_size, reference: 16, margin: 1}}
    published:
      - {{label: somebody, source: a paper, at: {{"2": 52.0, "4": 66.0, "8": 78.0, "16": 79.0}}}}
  - id: "trend"
    says: BN falls with the batch.
    source: [T]
    experiment: made_up.yaml
    test: {{kind: trend, a: {{norm: batch}}, along: batch_size, direction: falls}}
  - id: "ratio"
    says: GN is twice as good.
    source: [T]
    experiment: made_up.yaml
    test: {{kind: ratio, a: {{norm: group, batch_size: 2}}, b: {{norm: batch, batch_size: 2}}, factor: 2}}
  - id: "all"
    says: LN trains, and GN is better than a coin.
    source: [T]
    experiment: made_up.yaml
    test:
      kind: all
      of:
        - {{kind: greater, a: {{norm: layer, batch_size: 2}}, b: {{norm: batch, batch_size: 2}}, margin: 1}}
        - {{kind: greater, a: {{norm: group, batch_size: 2}}, b: {{constant: 50}}, margin: 1}}
  - id: "early"
    says: LN is better at a batch of 8.
    source: [T]
    experiment: made_up.yaml
    test: {{kind: greater, a: {{norm: layer, batch_size: 8}}, b: {{norm: batch, batch_size: 8}}, margin: 1}}
  - id: "absent"
    says: LN is better at a batch of 16.
    source: [T]
    experiment: made_up.yaml
    test: {{kind: greater, a: {{norm: layer, batch_size: 16}}, b: {{norm: batch, batch_size: 16}}, margin: 1}}
  - id: "later"
    says: A task that is not there.
    source: [T]
    not_run: there is no such <task> yet
"""
NOISE = (0.000, 0.004, -0.003, 0.005, -0.004, 0.002)
BATCH = {2: 0.50, 4: 0.66, 8: 0.79, 16: 0.80}
GROUP = {2: 0.700, 4: 0.705, 8: 0.698, 16: 0.702}


def judged(directory: Path, *, is_reversed: bool = False) -> list[Judged]:
    """Claims of every kind: of 6 seeds the last has not been looked at, and some trials diverged."""
    claims = load(folder(directory, CLAIMS))
    (experiment,) = {each.name: each for claim in claims for each in claim.experiments.values()}.values()
    accuracies: dict[tuple[str, int], list[float | None]] = {}
    for method, centres in (("batch", BATCH), ("group", GROUP)):
        for shift, (size, centre) in enumerate(centres.items()):  # each cell has the noise in another order
            noise = [*NOISE[shift:], *NOISE[:shift]][:: 1 if method == "batch" else -1]
            accuracies[method, size] = [centre + each for each in noise]
    accuracies["layer", 2] = [0.40, None, 0.41, None, 0.42]
    accuracies["layer", 8] = [0.61, 0.62]
    made = records(experiment, accuracies)
    return judge_all(claims, {experiment.name: Stored(experiment.name, made[:: -1 if is_reversed else 1])})
