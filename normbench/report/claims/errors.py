"""What can be wrong with claims, apart from what judges them: all commands know these, few load that."""


class CellError(ValueError):
    """A comparison that its experiment has no cells for.

    Attributes:
        key: dotted key of the comparison that asks for them, such as ``a.batch_size``.
    """

    def __init__(self, key: str, words: str) -> None:
        super().__init__(words)
        self.key = key


class QuestionError(ValueError):
    """A question that is not of the grammar, or names what there is not; the message says which words."""


class LooksError(ValueError):
    """The declared looks of claims cannot be read."""
