"""Which errors are the user's, and what is left of them without Hydra's wrapping."""

import pytest
from hydra.errors import InstantiationException

from et.errors import UserError, is_user_error, unwrapped


def wrapped(cause):
    error = InstantiationException("Error in call to target")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("cause, mendable", [(UserError("x"), True), (ValueError("x"), True), (TypeError("x"), False)])
def test_what_a_constructor_raised(cause, mendable):
    error = wrapped(cause)
    assert unwrapped(error) is cause and is_user_error(error) == mendable


def test_errors_of_no_constructor_stay_what_they_are():
    for error, mendable in ((UserError("x"), True), (ValueError("x"), False), (wrapped(None), False)):
        assert unwrapped(error) is error and is_user_error(error) == mendable
