"""What an order comes to, and what is paid."""


def amount_of(order):
    return order["price"] * order["count"]


def pay(amount):
    if amount < 0:
        raise ValueError(f"{amount} cannot be paid out")
    return f"{amount} paid out"
