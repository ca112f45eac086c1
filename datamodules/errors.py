"""Define the error for data that cannot be used."""


class DataError(ValueError):
    """The user's data cannot be used. The message is one line that ends with what to do."""
