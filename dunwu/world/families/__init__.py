"""The general families: facts, instructions, dialogue, stories, identity, translation, safety, greeting.

Each family is a function (dice, split, chinese) → Item. Facts are held out by person and city, the other families by a
hash of their content. `wording.py` has what several of them say.
"""

from __future__ import annotations

from dunwu.world.families import facts, instructions, manners, talk, translation
from dunwu.world.general_items import Family

FAMILIES: dict[str, Family] = {
    "facts": facts.facts,
    "instructions": instructions.instructions,
    "dialogue": talk.dialogue,
    "stories": talk.stories,
    "identity": manners.identity,
    "translation": translation.translation,
    "safety": manners.safety,
    "greeting": manners.greeting,
}
"""Name → family."""
SHARES = {
    "facts": 0.2,
    "instructions": 0.2,
    "dialogue": 0.12,
    "stories": 0.14,
    "identity": 0.07,
    "translation": 0.12,
    "safety": 0.11,
    "greeting": 0.04,
}
"""How often each family is asked, unless somebody says otherwise."""
