"""`leuda listen`: a DICOM node that labels what is sent to it, and sends the results on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leuda_deploy.cli.app import USE, JsonOption, app, say
from leuda_deploy.errors import InputError, printable

if TYPE_CHECKING:
    from leuda_deploy.jobs.node.queue import Queue


# the panels of `leuda listen --help`
NETWORK, RESULTS = "Network", "Results"


@app.command(rich_help_panel=USE)
def listen(
    queue: Annotated[
        Path, typer.Option(help="Folder in which all that came is kept until it is done.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="Export folder or *.onnx file. Default: the phantom model."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM): refuse a model whose export it has not signed."),
    ] = None,
    aet: Annotated[str, typer.Option(help="Our AE title.", rich_help_panel=NETWORK)] = "LEUDA",
    host: Annotated[
        str, typer.Option(help="Address to listen on.", rich_help_panel=NETWORK)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="0: a free one.", min=0, max=65535, rich_help_panel=NETWORK)
    ] = 11112,
    senders: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="AET, AET@HOST or AET@HOST:PORT that may send; again for more. Storage commitment "
            "is answered on that port. Default: all on this computer.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option(
            "--return",
            help="AET@HOST:PORT, or https://HOST/dicom-web (STOW-RS), that gets the results. "
            "Default: they stay in the queue's folder.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    tls: Annotated[
        tuple[Path, Path, Path] | None,
        typer.Option(
            help="Our certificate, its key, and the authority of the others' (PEM), for both ways.",
            metavar="CERT KEY CA",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    quiet: Annotated[
        float,
        typer.Option(help="Seconds without an image after which a series is complete.", min=0),
    ] = 10.0,
    engine: Annotated[
        Literal["auto", "ort-cpu", "ort-cuda", "openvino", "tensorrt", "tensorrt-rtx"],
        typer.Option(help="What runs the model."),
    ] = "ort-cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all.", min=1)] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Most memory to use; a scan that needs more fails.")
    ] = None,
    seg_type: Annotated[
        Literal["binary", "labelmap"],
        typer.Option(help="How DICOM SEG holds its segments.", rich_help_panel=RESULTS),
    ] = "binary",
    sr: Annotated[
        bool, typer.Option("--sr/--no-sr", help="A structured report.", rich_help_panel=RESULTS)
    ] = True,
    rtstruct: Annotated[
        bool, typer.Option("--rtstruct", help="Also outlines.", rich_help_panel=RESULTS)
    ] = False,
    keep: Annotated[
        float,
        typer.Option(help="Hours for which the files of what was sent are kept.", min=0),
    ] = 24.0,
    show_names: Annotated[
        bool, typer.Option("--show-names", help="Name patients in the log.")
    ] = False,
    page: Annotated[
        int | None,
        typer.Option(help="Show a page about the queue on this port of 127.0.0.1; 0: a free one."),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="First, take up again all that failed.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Say what is in the queue, and end.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take scans over the network, label them, send results.  [dim]Needs: leuda\\[node].[/dim]"""
    from leuda_deploy.inference.segmenter import Segmenter
    from leuda_deploy.inference.settings import Settings
    from leuda_deploy.jobs.dicom_out.findings import uncoded_line
    from leuda_deploy.jobs.node.database import in_one_line
    from leuda_deploy.jobs.node.queue import Queue

    if status:
        with in_one_line(queue):
            _print_queue(Queue(queue, read_only=True), as_json)
        return
    need_node(over_the_web=(destination or "").startswith("http"))
    from leuda_deploy.jobs.node.node import Node, NodeSettings
    from leuda_deploy.jobs.node.peers import Tls, check_title, parse_destination, parse_sender
    from leuda_deploy.jobs.node.receive import Door
    from leuda_deploy.jobs.prepare import Wishes
    from leuda_deploy.machine.memory import parse_bytes
    from leuda_deploy.model.export_folder import default_model
    from leuda_deploy.model.model_file import ModelFile

    door = Door(
        title=check_title(aet, "--aet"),
        host=host,
        port=port,
        senders=[parse_sender(each) for each in senders or ()],
        tls=None if tls is None else Tls(certificate=tls[0], key=tls[1], authority=tls[2]),
    )
    kinds = {"dicom_seg": True, "dicom_sr": sr, "rtstruct": rtstruct}
    settings = NodeSettings(
        door=door,
        destination=None if destination is None else parse_destination(destination),
        kinds=tuple(kind for kind, wanted in kinds.items() if wanted),
        quiet_s=quiet,
        keep_s=keep * 3600,
        show_names=show_names,
        wishes=Wishes(seg_type=seg_type),
    )
    if model is None:
        model = default_model()
        say(f"no --model given: using {model}, trained on phantoms, not for patients")
    opened = ModelFile.open(model) if key is None else ModelFile.open_signed(model, key)
    if opened.card.scan_count > 1 or opened.card.options.regions:
        raise InputError(f"{opened.path} has channels or regions: a node offers neither")
    if line := uncoded_line(opened.card):
        say(line)
    max_bytes = parse_bytes(max_memory) if max_memory else None
    segmenter = Segmenter(opened, Settings(engine=engine, threads=threads, max_bytes=max_bytes))
    node = Node(Queue(queue), segmenter, settings)
    with in_one_line(queue), node.open():
        if retry:
            say(f"{node.queue.retry_failed()} series are taken up again")
        say(f"{door.title} listens on {door.host}:{node.receiver.port}; end with Ctrl-C")
        _show_page(node.queue, page, opened.card.name)
        node.work()


def need_node(*, over_the_web: bool = False) -> None:
    """Raises MissingExtraError if pynetdicom, or what reads or posts DICOM, is not installed."""
    from importlib.util import find_spec

    from leuda_deploy.errors import MissingExtraError

    needed = ("pynetdicom", "highdicom", "pydicom", *(("dicomweb_client",) * over_the_web))
    for package in needed:
        if find_spec(package) is None:
            raise MissingExtraError("leuda listen", package, "node")


def _show_page(queue: Queue, port: int | None, model: str) -> None:
    """For as long as the process lives."""
    if port is None:
        return
    from threading import Thread

    from leuda_deploy.view.dashboard import Dashboard

    server = Dashboard(queue, {"model": model, "queue": str(queue.folder)}, port=port)
    Thread(target=server.serve_forever, name="leuda-page", daemon=True).start()
    say(f"page: {server.url}")


def _print_queue(queue: Queue, as_json: bool) -> None:
    from datetime import datetime

    from leuda_deploy.view.dashboard import state_of

    state = state_of(queue)
    if as_json:
        typer.echo(json.dumps(state, indent=1))
        return
    counts = ", ".join(f"{count} {name}" for name, count in sorted(state["counts"].items()))
    typer.echo(counts or "nothing has come yet")
    for each in state["series"]:
        came = datetime.fromtimestamp(each["received"]).astimezone().isoformat(" ", "seconds")
        line = (
            f"{each['id']:>6}  {came}  {each['sender']}  {each['images']} images  {each['state']}"
        )
        typer.echo(printable(f"{line}  {each['reason']}".rstrip(), 400))
