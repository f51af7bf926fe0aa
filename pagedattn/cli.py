"""The `pagedattn` command. Exit status: 0 success, 1 an error or a finding, 2 wrong usage, 130 interrupted.

With --json stdout holds one JSON value whatever happens: an error is {"error": text}. Wrong usage alone stays argparse's text on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pagedattn
from pagedattn import tune_command
from pagedattn.argument_types import names, numbers
from pagedattn.errors import PagedAttnError

SHAPE = ("num_heads", "num_kv_heads", "head_dim", "dtype", "kv_dtype", "device")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name, None: the process's own. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except PagedAttnError as error:
        _complain(str(error), arguments)
        return 1
    except KeyboardInterrupt:
        _complain("interrupted", arguments)
        return 130
    except BrokenPipeError:  # the reader has seen enough (| head); nothing may be written when Python closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pagedattn", description="Paged attention: a demonstration, the kernel store, what is inside.")
    parser.add_argument("--version", action="version", version=f"pagedattn {pagedattn.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, parent: Any = commands) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(run=run)
        return made

    demo = command("demo", _demo, "run a small language model through the paged cache")
    demo.add_argument("--device", help="cuda, cuda:N or cpu; default: a GPU if one is usable")
    demo.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="bytes that each continuation gets at most; default: %(default)s"
    )
    demo.add_argument(
        "--temperature", type=float, default=0.7, metavar="T", help="0.1: nearly always the likeliest byte; default: %(default)s"
    )
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed, the same text; default: %(default)s")

    precompile = command("precompile", _precompile, "compile kernels into the store; no GPU is needed")
    precompile.add_argument("--arch", type=names, metavar="SM,...", help="targets such as sm_80,sm_90; default: all that the compiler has")
    precompile.add_argument("--dtype", type=names, metavar="T,...", help="float16, bfloat16; default: both (float16 only below sm_80)")
    precompile.add_argument(
        "--kv-dtype", type=names, metavar="T,...", help="what the cache stores: float16, bfloat16, int8, int4; default: all"
    )
    precompile.add_argument("--head-dim", type=numbers, metavar="D,...", help="default: all")
    precompile.add_argument("--op", type=names, metavar="OP,...", help="decode, prefill, append, gather, merge; default: all")
    precompile.add_argument("--jobs", type=int, metavar="N", help="processes; default: one per core")
    precompile.add_argument("--out", metavar="DIR", help="the store to fill; default: the user's own")
    precompile.add_argument("--no-progress", action="store_true", help="no progress bar")

    warmup = command("warmup", _warmup, "build and load the kernels for a model's shape on this GPU")
    _shape(warmup)

    store = commands.add_parser("store", help="look after the compiled kernels", description="Look after the compiled kernels.")
    actions = store.add_subparsers(metavar="ACTION", required=True)
    stores = [
        command("list", _store_list, "every kernel in the store and its layers", actions),
        command("path", _store_path, "where the store is", actions),
        command("verify", _store_verify, "check every kernel against its checksums", actions),
        command("clear", _store_clear, "remove every kernel of the user's own store", actions),
        command("pack", _store_pack, "write every kernel to one file, for another machine", actions),
        command("unpack", _store_unpack, "add the kernels of such a file, checked before the first is added", actions),
    ]
    for action in stores[-2:]:
        action.add_argument("file", metavar="FILE", help="a tar file; compressed if it is called .gz or .tgz")

    show = command("show", _show, "what one kernel is made of; compiles it if need be")
    show.add_argument("name", metavar="NAME", help="a kernel's name, as `store list` prints it")
    what = show.add_mutually_exclusive_group(required=True)
    for flag, text in {
        "source": "the CUDA source",
        "ptx": "the PTX",
        "sass": "the machine code; needs nvdisasm or cuobjdump on PATH",
        "resources": "registers, spills and shared memory",
    }.items():
        what.add_argument(f"--{flag}", dest="what", action="store_const", const=flag, help=text)

    explain = command("explain", _explain, "which kernels and tiles a call of a shape would use, and why")
    _shape(explain)
    explain.add_argument("--seqlens-k", type=numbers, required=True, metavar="N,...", help="all tokens of each sequence")
    explain.add_argument("--seqlens-q", type=numbers, metavar="N,...", help="those of them that are new; default: one of each")
    explain.add_argument("--block-len", type=int, default=64, metavar="N", help="tokens of a block; default: %(default)s")
    explain.add_argument("--softcap", type=float, metavar="CAP", help="of the call; default: none")
    explain.add_argument("--num-splits", type=_splits, metavar="N", help="of the call: a number of cuts, or fixed:N; default: none")
    explain.add_argument("--alibi", action="store_true", help="the call has `alibi_slopes`")
    explain.add_argument("--mask", action="store_true", help="the call has a `mask`")

    tune = command("tune", _tune, "measure which tiles serve this GPU best, and keep what beats the shipped table")
    tune_command.add_options(tune)

    doctor = command("doctor", _doctor, "what is here, and does it work")
    bench = command("bench", _bench, "measure on the GPU; in a checkout")
    bench.add_argument(
        "--only", type=names, metavar="SECTION,...", help="of build, host, decode, fused, splits, placement, prefill, scores, peers, scale"
    )
    for readable in (demo, precompile, warmup, *stores, show, explain, tune, doctor, bench):
        readable.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _shape(command: argparse.ArgumentParser) -> None:
    """The options that say what a model's calls look like."""
    command.add_argument("--num-heads", type=int, required=True, metavar="N", help="query heads")
    command.add_argument("--num-kv-heads", type=int, required=True, metavar="N", help="KV heads")
    command.add_argument("--head-dim", type=int, required=True, metavar="D", help="elements of a head")
    command.add_argument("--dtype", default="float16", metavar="T", help="float16 or bfloat16; default: %(default)s")
    command.add_argument("--kv-dtype", metavar="T", help="what the cache stores: int8 or int4; default: the dtype")
    command.add_argument("--device", help="cuda, cuda:N, cpu or interpreter; default: a GPU if one is usable")


def _splits(text: str) -> int | str:
    """A number of cuts; anything else is for the call to judge."""
    try:
        return int(text)
    except ValueError:
        return text


def _demo(arguments: argparse.Namespace) -> int:
    from pagedattn import demo

    return demo.run(arguments.device, arguments.max_new_tokens, arguments.seed, arguments.json, temperature=arguments.temperature)


def _precompile(arguments: argparse.Namespace) -> int:
    from pagedattn.precompile import precompile

    report = precompile(
        arguments.arch,
        arguments.dtype,
        arguments.head_dim,
        arguments.op,
        kv_dtypes=arguments.kv_dtype,
        jobs=arguments.jobs,
        progress=sys.stderr.isatty() and not (arguments.no_progress or arguments.json),
        out=arguments.out,
    )
    _print(report.to_dict() if arguments.json else report)
    return 1 if report.failed else 0


def _warmup(arguments: argparse.Namespace) -> int:
    from pagedattn.warmup import warmup

    warmth = warmup(**{name: getattr(arguments, name) for name in SHAPE})
    _print(warmth.to_dict() if arguments.json else warmth)
    return 0


def _store_list(arguments: argparse.Namespace) -> int:
    from pagedattn.store import Store

    entries = Store().entries()
    if arguments.json:
        fields = ("name", "arch", "nvrtc", "key", "seconds", "num_bytes", "writable")
        _print([{**{f: getattr(e, f) for f in fields}, "path": str(e.path)} for e in entries])
        return 0
    width = max([len(e.name) for e in entries], default=4)
    print(f"{'name':<{width}}  nvrtc  seconds      KiB")
    for e in entries:
        print(f"{e.name:<{width}}  {e.nvrtc:<5}  {e.seconds:>7.2f}  {e.num_bytes / 1024:>7.0f}{'' if e.writable else '  read-only'}")
    print(f"{len(entries)} kernels")
    return 0


def _store_path(arguments: argparse.Namespace) -> int:
    from pagedattn.store import Store

    store = Store()
    _print({"path": str(store.path), "layers": [str(p) for p in store.layers]} if arguments.json else store.path)
    return 0


def _store_verify(arguments: argparse.Namespace) -> int:
    from pagedattn.store import Store

    store = Store()
    damaged = store.verify()
    if arguments.json:
        _print({"entries": len(store.entries()), "damaged": [{"path": str(d.path), "reason": d.reason} for d in damaged]})
    else:
        for damage in damaged:
            print(f"{damage.path}: {damage.reason}")
        print(f"{len(damaged)} damaged, compiled anew when needed" if damaged else f"{len(store.entries())} kernels, all whole")
    return 1 if damaged else 0


def _store_clear(arguments: argparse.Namespace) -> int:
    from pagedattn.store import Store

    store = Store()
    removed = store.clear()
    _print({"path": str(store.path), "removed": removed} if arguments.json else f"{removed} kernels removed from {store.path}")
    return 0


def _store_pack(arguments: argparse.Namespace) -> int:
    from pagedattn.archive import pack
    from pagedattn.store import Store

    done = pack(Store(), arguments.file)
    if arguments.json:
        _print({"file": arguments.file, "packed": list(done.names), "left_out": [str(path) for path in done.left_out]})
    else:
        damaged = f"; {len(done.left_out)} damaged ones left out" if done.left_out else ""
        print(f"{len(done.names)} kernels packed into {arguments.file}{damaged}")
    return 0


def _store_unpack(arguments: argparse.Namespace) -> int:
    from pagedattn.archive import unpack
    from pagedattn.store import Store

    store = Store()
    done = unpack(store, arguments.file)
    if arguments.json:
        _print({"path": str(store.path), "added": list(done.added), "present": list(done.present)})
    else:
        print(f"{len(done.added)} kernels added to {store.path}, {len(done.present)} were there")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from pagedattn import show

    found = show.find(arguments.name)
    if arguments.what == "resources":
        width = max(map(len, found.resources))
        text = "\n".join(f"{name:<{width}}  {value}" for name, value in found.resources.items())
    else:
        text = found.sass() if arguments.what == "sass" else getattr(found, arguments.what)
    value = found.resources if arguments.what == "resources" else text
    _print({"name": found.name, arguments.what: value} if arguments.json else text.rstrip("\n"))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from pagedattn.explain import explain_shape

    asked = *SHAPE, "seqlens_k", "seqlens_q", "block_len", "softcap", "num_splits", "alibi", "mask"
    told = explain_shape(**{name: getattr(arguments, name) for name in asked})
    _print(told.to_dict() if arguments.json else told)
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    _print(tune_command.run(arguments))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from pagedattn.doctor import examine

    diagnosis = examine()
    _print(diagnosis.to_dict() if arguments.json else diagnosis)
    return 0 if diagnosis.ok else 1


def _bench(arguments: argparse.Namespace) -> int:
    from pagedattn import bench

    return bench.run(arguments.only, arguments.json)


def _complain(text: str, arguments: argparse.Namespace) -> None:
    if getattr(arguments, "json", False):
        _print({"error": text})
    else:
        print(f"pagedattn: {text}", file=sys.stderr)


def _print(value: Any) -> None:
    print(json.dumps(value, indent=1) if isinstance(value, (dict, list)) else value)
