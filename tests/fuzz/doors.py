"""All doors, in the order of the table."""

from tests.fuzz.records import Records

DOORS = (Records,)
