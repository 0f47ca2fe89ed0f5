"""Tools of one's own for `environment = "tools"`: a function with type hints and a docstring is one.

environment_options = { tools = ["calculator", "examples/own_tools.py:convert"] }
"""

#: Dollars in other currencies.
RATES = {"EUR": 0.92, "GBP": 0.79, "JPY": 151.0}


def convert(amount: float, to: str = "EUR") -> float:
    """Convert dollars into another currency.

    Args:
        amount: in dollars
        to: EUR, GBP or JPY
    """
    return round(amount * RATES[to], 2)
