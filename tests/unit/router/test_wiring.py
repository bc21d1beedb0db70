"""What the shipped classifiers are called, and what the log says of them."""

import pytest
from msgspec.structs import replace

from classifiers.complexity import Complexity
from router import wiring
from router.settings import ClassifierSettings, Settings

BASE = Settings()
OTHER = replace(BASE, draft=replace(BASE.draft, model="somebody/diffusion"))
OWN = ClassifierSettings(complexity="general", quality="mine")


@pytest.mark.parametrize(
    ("settings", "warned"), [(BASE, False), (OTHER, True), (replace(OTHER, classifiers=OWN), False)]
)
def test_the_banner_warns_of_classifiers_that_know_other_models(settings: Settings, warned: bool) -> None:
    assert ("draftgate train" in wiring.banner(settings)) == warned


def test_general_is_a_name_of_a_shipped_complexity_model() -> None:
    parts = wiring.build(replace(BASE, classifiers=ClassifierSettings(complexity="general")))
    assert isinstance(parts.complexity, Complexity)
    assert parts.complexity.version != wiring.build(BASE).complexity.version


@pytest.mark.parametrize("name", ["general", "demo"])
def test_shipped_models_score_any_conversation(name: str) -> None:
    model = wiring.build(replace(BASE, classifiers=ClassifierSettings(complexity=name))).complexity
    hard = ({"role": "user", "content": "What do I pay for 3 lamps and 4 mugs with 10% off?"},)
    for messages in ((), hard, ({"role": "user", "content": "hi"},)):
        assert 0 < model.score(messages) < 1
