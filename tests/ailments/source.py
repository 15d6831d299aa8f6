"""x"""

from ._ailment import Ailment

AILMENTS: tuple[Ailment, ...] = ()
