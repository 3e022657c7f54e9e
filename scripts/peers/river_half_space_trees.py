"""river's half-space trees: scores of events in their order, learned one by one.

Runs in an environment of its own, made by scripts/detection. Reads JSON from standard input, of one
agent after the other: {"events": [[feature, ...], ...], "forks": [[number of the event before
which it begins, [[feature, ...], ...]], ...]}; prints the scores in the same form, a line for each.
"""

import copy
import json
import sys

from river import anomaly, compose, preprocessing

WINDOW = 250


def main() -> None:
    """Score agent after agent."""
    for line in sys.stdin:
        agent = json.loads(line)
        model = compose.Pipeline(
            preprocessing.MinMaxScaler(),
            anomaly.HalfSpaceTrees(n_trees=25, height=8, window_size=WINDOW, seed=1),
        )
        scores, forked, waiting = [], [], list(agent["forks"])
        for number, features in enumerate(agent["events"]):
            while waiting and waiting[0][0] == number:
                other = copy.deepcopy(model)
                forked.append([_look(other, each) for each in waiting.pop(0)[1]])
            scores.append(_look(model, features))
        print(json.dumps({"events": scores, "forks": forked}), flush=True)


def _look(model: compose.Pipeline, features: list[float]) -> float:
    named = {str(number): value for number, value in enumerate(features)}
    score = float(model.score_one(named))
    model.learn_one(named)
    return score


if __name__ == "__main__":
    main()
