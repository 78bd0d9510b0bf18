"""Is what a user gave a number? Text, tensors and truth values are none, although Python computes with the last."""


def is_number(value: object) -> bool:
    """Whether a value is a whole number or a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number that is no less than `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
