"""A Python whose processes start at once: forks of one that has imported what jobs of a workflow import.

`warm_python.py FOLDER` writes `FOLDER/python`, to be called as `python` is, and serves it until standard input ends.
What it starts finds itself in `sys.executable`, so that Snakemake's jobs are such forks too. They have the arguments,
environment, folder and open files of whoever called; the library itself is not among what is imported ahead.
"""

import array
import contextlib
import importlib
import json
import os
import runpy
import select
import socket
import sys
import traceback
from pathlib import Path

AHEAD = (  # heavy, and needed by most jobs
    *("numpy", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.linear_model", "matplotlib.pyplot", "pydantic"),
    *("torch", "torch._dynamo", "accelerate", "peft", "transformers.generation", "snakemake.cli"),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "whisper", "bert", "esm")),
)
CLIENT = """#!{python} -SE
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    files = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    server.sendmsg([len(asked).to_bytes(8, "little")], [files])
    server.sendall(asked)
    sys.exit(int.from_bytes(server.recv(1) or b"\\1", "little"))
"""


def main(folder: Path) -> None:
    for module in AHEAD:
        importlib.import_module(module)
    address, command = str(folder / "socket"), folder / "python"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        command.write_text(CLIENT.format(python=sys.executable, address=address))
        command.chmod(0o755)
        print("ready", flush=True)
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            caller, _ = listening.accept()
            if not os.fork():
                listening.close()
                answer(caller, str(command))
            caller.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def answer(caller: socket.socket, command: str) -> None:
    """Runs what was asked for in a fork, and sends its exit status."""
    size, attached, _, _ = caller.recvmsg(8, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    files = array.array("i", attached[0][2])
    with caller.makefile("rb") as stream:
        arguments, folder, environment = json.loads(stream.read(int.from_bytes(size, "little")))
    child = os.fork()
    if not child:
        for number, file in enumerate(files):
            os.dup2(file, number)
        caller.close()
        os._exit(run(arguments, folder, environment, command))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    caller.send(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def run(arguments: list[str], folder: str, environment: dict[str, str], command: str) -> int:
    """As `python` with these arguments: a file, `-m` and a module, `-c` and code, or `-`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable, (first, *rest) = command, arguments
    place = os.path.dirname(first) if os.path.isfile(first) else folder
    sys.path[:1] = [place, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    status = 0
    try:
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first in ("-", "-c"):
            sys.argv = [first, *rest[first == "-c" :]]
            exec(sys.stdin.read() if first == "-" else rest[0], {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(BrokenPipeError, ValueError):  # nobody reads it any more, or it is closed
        sys.stdout.flush()
        sys.stderr.flush()
    return status


if __name__ == "__main__":
    main(Path(sys.argv[1]))
