"""The branches, which are told of new rates."""

import asyncio
import os

#: So many seconds a branch has to answer.
PATIENCE = 5


async def tell(name, day):
    """Tell one branch, a line each way; what it answers."""
    host = os.environ.get("WORKER_BRANCH_HOST", f"{name}.example.org")
    reader, writer = await asyncio.open_connection(host, 7070)
    try:
        writer.write(f"rates of {day}\n".encode())
        return (await reader.readline()).decode().strip()
    finally:
        writer.close()


async def tell_all(names, day):
    answers = await asyncio.gather(*(asyncio.wait_for(tell(name, day), PATIENCE) for name in names))
    return dict(zip(names, answers, strict=True))
