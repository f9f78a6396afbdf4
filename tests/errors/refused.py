"""What tests of messages share."""

from collections.abc import Callable

import pytest


def refused(said: str, call: Callable, *arguments, kind: type[Exception] = ValueError, **more) -> None:
    """A call that has to be refused in one line that begins so."""
    with pytest.raises(kind) as refusal:
        call(*arguments, **more)
    message = str(refusal.value)
    assert message.startswith(said) and "\n" not in message, message
