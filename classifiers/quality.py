"""Whether a finished draft is good: verifiers first, then an acceptor over all that is known of the draft.

The acceptor holds one forest of decision trees for each set of feature groups (`classifiers/draft_features.py`) that its training
data allowed, and asks the one that uses the most of what is there. With f the mean over T trees of the share of good drafts in the
leaf that the features come to,

    s = log((f T + 1/2) / (T (1 - f) + 1/2))
    P(the draft is good) = 1 / (1 + exp(-(slope s + offset)))

where slope and offset (Platt's calibration) are those of the request's task type, or, where there were too few labels of that
type, of all. Source: Geurts et al., "Extremely randomized trees", Machine Learning 63, 2006; Platt, "Probabilistic outputs for
support vector machines", 1999.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from classifiers import artifact
from classifiers.api import ArtifactError, Check, DraftEvidence, Verdict
from classifiers.draft_features import SIZES, VERSION, Vector, draft_features
from classifiers.forest import Forest, Walker
from classifiers.tasks import TYPES, Task
from classifiers.verifiers import verify
from classifiers.verifiers.json_format import unverifiable

KIND = "draftgate-acceptor"

Groups = tuple[str, ...]  # in the order of SIZES, "text" first


class GroupModel(NamedTuple):
    """The model for one set of feature groups."""

    forest: Forest
    calibration: NDArray[np.float32]  # (len(TYPES), 2): slope, offset


class Acceptor:
    """P(a draft is good), whatever is known of it."""

    def __init__(self, models: Mapping[Groups, GroupModel], version: str = "unsaved") -> None:
        """Take trained models; `load` is the usual way here."""
        order = list(SIZES)
        ranked = sorted(models, key=lambda groups: (-len(groups), [order.index(group) for group in groups]))
        self._models = {groups: models[groups] for groups in ranked}  # those that use the most first
        self._walkers = {groups: Walker(model.forest) for groups, model in self._models.items()}
        self.version = version

    @classmethod
    def load(cls, folder: str | Path) -> "Acceptor":
        """Read a stored acceptor. Raises ArtifactError."""
        tensors, about = artifact.load(folder, KIND, VERSION)
        stored: dict[Groups, dict[str, NDArray[Any]]] = {}
        for name, tensor in tensors.items():
            groups, _, part = name.partition(".")
            stored.setdefault(tuple(groups.split("+")), {})[part] = tensor
        if ("text",) not in stored:
            raise ArtifactError(f"expected a model of the text alone in {Path(folder).name}, got {sorted(stored)}")
        models = {groups: _model(Path(folder).name, groups, parts) for groups, parts in stored.items()}
        return cls(models, artifact.version(about))

    def save(self, folder: str | Path, card: dict[str, Any]) -> None:
        """Write the acceptor and, into model.json, what is known of its making."""
        tensors = {
            f"{'+'.join(groups)}.{name}": tensor
            for groups, model in self._models.items()
            for name, tensor in (*model.forest._asdict().items(), ("calibration", model.calibration))
        }
        artifact.save(folder, KIND, VERSION, tensors, card)

    def judge(self, evidence: DraftEvidence, task: Task | None = None) -> Verdict:
        """Run the verifiers, then the acceptor; a decisive check that failed makes the quality 0.

        Args:
            evidence: of the draft.
            task: of the evidence's messages, where several drafts share it.
        """
        task = task or Task(evidence.messages)
        checks = verify(evidence, task)
        verdict = Verdict(quality=0.0, checks=checks)
        return verdict if verdict.failed else replace(verdict, quality=self.quality(evidence, checks, task))

    def quality(self, evidence: DraftEvidence, checks: Sequence[Check], task: Task) -> float:
        """P(the draft is good), 0..1, of a draft that passed every decisive check."""
        return self.probability(draft_features(evidence, checks, task), task.type)

    def unverifiable(self, response_format: dict[str, Any]) -> str | None:
        """Why no answer could be held to this format; None when one can."""
        return unverifiable(response_format)

    def choose(self, evidences: Sequence[DraftEvidence]) -> tuple[int, Verdict]:
        """The best of several candidates of one request: its index and verdict, the first one's of equals.

        A candidate without `others` is given the texts of all the rest. What the request asks is read once, of the first one's
        messages. Raises ValueError: no candidates.
        """
        if not evidences:
            raise ValueError("expected at least one candidate, got none")
        task = Task(evidences[0].messages)
        texts = [evidence.text for evidence in evidences]
        verdicts = [
            self.judge(evidence if evidence.others else replace(evidence, others=(*texts[:at], *texts[at + 1 :])), task)
            for at, evidence in enumerate(evidences)
        ]
        best = max(range(len(verdicts)), key=lambda at: verdicts[at].quality)
        return best, verdicts[best]

    def groups_used(self, present: Iterable[str]) -> Groups:
        """The feature groups of the model that judges a draft of which these are known."""
        known = set(present)
        return next(groups for groups in self._models if known.issuperset(groups))

    def probability(self, features: Mapping[str, Vector], task: str) -> float:
        """P(the draft is good), 0..1, from its groups of features and its task type."""
        groups = self.groups_used(features)
        model, walker = self._models[groups], self._walkers[groups]
        share = walker.mean(np.concatenate([features[group] for group in groups]))
        slope, offset = model.calibration[TYPES.index(task)].tolist()
        return artifact.sigmoid(slope * log_odds(share, len(model.forest.roots)) + offset)


def log_odds(share: float | NDArray[np.float64], trees: int) -> Any:
    """Of a mean over trees, with half a tree added on both sides: finite, and as fine as the mean itself."""
    return np.log((share * trees + 0.5) / ((1 - share) * trees + 0.5))


def _model(name: str, groups: Groups, parts: dict[str, NDArray[Any]]) -> GroupModel:
    """Put a stored model together, if it fits the features of these groups."""
    title = f"{name}, {'+'.join(groups)}"
    if groups != tuple(group for group in SIZES if group in groups) or groups[0] != "text":
        raise ArtifactError(f"expected groups of {list(SIZES)} in this order in {title}, got others")
    if set(parts) != {*Forest._fields, "calibration"}:
        raise ArtifactError(f"expected {[*Forest._fields, 'calibration']} in {title}, got {sorted(parts)}")
    calibration = parts.pop("calibration")
    if calibration.shape != (len(TYPES), 2):
        raise ArtifactError(f"expected calibration {(len(TYPES), 2)} in {title}, got {calibration.shape}")
    try:
        forest = Forest(**parts).checked(sum(SIZES[group] for group in groups))
    except ValueError as err:
        raise ArtifactError(f"{title}: {err}") from err
    return GroupModel(forest, calibration)
