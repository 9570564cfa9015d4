"""The tables of the pages, by name: each is made from results files."""

from collections.abc import Callable

from .files import Results
from .speed_tables import SPEED_TABLES
from .swap_tables import SWAP_TABLES
from .zeroshot_tables import ZEROSHOT_TABLES

TABLES: dict[str, Callable[[Results], str]] = {**SWAP_TABLES, **ZEROSHOT_TABLES, **SPEED_TABLES}
