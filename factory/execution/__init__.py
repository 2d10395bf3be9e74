"""Running code that nobody has read: answers' programs and tests in processes that can reach nothing and end in time.

    Runner().calls(code, tests=["assert add(1, 2) == 3"])   ->  Outcome
    isolation()                                             ->  what this machine has for it, and what it lacks

Each piece of code runs in a cell: a process tree with its own process, mount, network and IPC namespaces, a root that
holds the Python installation and the system's libraries, read-only, and a /tmp of its own, no capabilities, an empty
environment and limits on memory, time, files and processes. `runner.py` is the side of the caller, `server.py` a
process that forks a cell for each piece of code, `cell.py` the walls, `jobs.py` what goes on inside.

What is not walled off: the kernel's system calls (there is no seccomp filter), the processor's speed and caches, the
world-readable files of /usr and of the Python installation, the machine's memory as a whole (limits are for each
process), and what a process can see of itself. A verdict is never in the hands of the code that it is about: tests run
in another process than the answer, which gives values and nothing else (`remote.py`).

With `unsafe_exec` the walls are left out and the limits kept: such code can read what the user can read, and fight the
process that judges it.
"""

from factory.execution.runner import Facility, Limits, Outcome, Runner, imported, isolation

__all__ = ["Facility", "Limits", "Outcome", "Runner", "imported", "isolation"]
