"""Words with numbers, for lines that people read."""


def counted(number: int, noun: str) -> str:
    """A number with its noun, which gets an s unless the number is 1.

    >>> counted(1, "held-out row"), counted(1200, "row")
    ('1 held-out row', '1200 rows')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
