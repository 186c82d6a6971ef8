"""Work that goes on beside the rest, whose failure is not lost."""

import threading
from collections.abc import Callable


def in_background(work: Callable[[], object]) -> Callable[[], None]:
    """Run `work` in a thread; the returned function waits for it and raises what it raised."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()

    def join() -> None:
        thread.join()
        if failures:
            raise failures[0]

    return join
