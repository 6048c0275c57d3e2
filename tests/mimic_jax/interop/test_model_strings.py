"""Model strings against Python's own way of writing values, and whatever else might be in them."""

import keyword

import hypothesis
import hypothesis.strategies as st
import pytest

from mimic_jax.command import InputError
from mimic_jax.interop.model_strings import keywords

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@hypothesis.given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), plain))
def test_model_strings_give_back_what_python_wrote(arguments):
    arguments = {name: value for name, value in arguments.items() if not keyword.iskeyword(name)}
    string = f"CroCoNet({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    assert keywords(string) == arguments


@pytest.mark.parametrize(
    "string",
    [
        "CroCoNet(3)",
        "CroCoNet(**x)",
        "CroCoNet(*x)",
        "CroCoNet(a=b)",
        "CroCoNet(a=b())",
        "CroCoNet(a=[x for x in ()])",
        "CroCoNet(a=1+1)",
        "CroCoNet(a={1: 2})",
        "CroCoNet(a=b'x')",
        "CroCoNet(a=...)",
        "CroCoNet(a=-True)",
        "CroCoNet(a=-'x')",
        "CroCoNet(a=1, a=2)",
        "CroCoNet(a=1",
        "CroCoNet(a='\0')",
        "os.system(a='true')",
        "(lambda: 1)()",
        "f()()",
        "CroCoNet(a=" + "(" * 10_000,
        "CroCoNet(a=" + "-" * 10_000 + "1)",
    ],
)
def test_model_strings_that_are_more_than_values_are_shown(string):
    with pytest.raises(InputError) as caught:
        keywords(string)
    assert string[:400] in str(caught.value)
    assert len(str(caught.value)) < 800
