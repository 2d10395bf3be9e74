"""What rules read of a round comes from its report.json."""

from __future__ import annotations

import json
import math

from rounds_so_far import report

from factory.schema import Estimate
from factory.stopping import RoundEvidence


def test_evidence_comes_from_a_round_report() -> None:
    kept = {
        "round": 1,
        "report": report(40).to_json(),
        "gain_champion": [0.1, None, None],
        "pairs": {"preferences": 51},
        "seconds": 12.5,
        "tokens": 900,
        "cost": None,
    }
    evidence = RoundEvidence.from_json(json.loads(json.dumps(kept)))
    assert (evidence.round, evidence.preferences, evidence.seconds, evidence.tokens) == (1, 51, 12.5, 900)
    assert evidence.cost is None
    assert evidence.report.pass_rate is not None
    assert evidence.report.pass_rate.value == 0.2
    assert evidence.gain is not None
    assert evidence.gain.value == 0.1
    assert math.isnan(evidence.gain.low)
    start = RoundEvidence.from_json({"round": 0, "report": report(20).to_json(), "pairs": None})
    assert (start.preferences, start.gain) == (0, None)


def test_evidence_of_judges_training_and_rows() -> None:
    kept = {
        "round": 1,
        "report": report(40).to_json(),
        "trained_on": {"table": "labels", "rows": 12},
        "pairs": {"preferences": 0, "labels": 14, "dropped": {"tie": 3}, "labels_dropped": {"middle": 5}},
        "training": {"last": {"rewards/margins": 1.5, "rewards/accuracies": 0.9}},
        "agreement": {
            "judges": [
                {"judge": "verifier", "flip_rate": [None, None, None]},
                {"judge": "pairwise", "flip_rate": [0.4, 0.3, 0.5]},
            ],
            "pairs": [
                {"judge": "human", "other": "pairwise", "same_winner": [0.7, 0.6, 0.8]},
                {"judge": "pairwise", "other": "verifier", "same_winner": [0.9, 0.8, 1.0]},
            ],
            "panel": {"effective": 1.8},
        },
    }
    evidence = RoundEvidence.from_json(json.loads(json.dumps(kept)))
    assert (evidence.trained_on, evidence.rows, evidence.labels, evidence.lost) == ("labels", 12, 14, {"middle": 5})
    assert (evidence.margin, evidence.accuracy, evidence.effective) == (1.5, 0.9, 1.8)
    assert evidence.flips == {"pairwise": Estimate(0.4, 0.3, 0.5)}
    assert evidence.human == {"pairwise": Estimate(0.7, 0.6, 0.8)}
