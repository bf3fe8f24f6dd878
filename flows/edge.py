"""`fedloop edge`: predict where there is no network, and send what was predicted once there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.edge_upload import Uploaded

app = typer.Typer(
    help="A site with a bad network: it predicts by itself, and its rows reach the service later.", no_args_is_help=True
)

Log = Annotated[Path, typer.Option("--log", metavar="FOLDER", help="the local log, which is made where it is missing")]


@app.command()
def predict(
    pictures: Annotated[list[Path], typer.Argument(help="PNG or JPEG files, or folders of them", show_default=False)],
    graph: Annotated[Path, typer.Option("--graph", metavar="FOLDER", help="what `fedloop export --onnx` wrote")],
    site: Annotated[str, typer.Option(help="where the pictures were taken")],
    log: Log,
    int8: Annotated[bool, typer.Option("--int8", help="with the int8 graph: smaller, quicker, a little off")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object a line, with all probabilities")] = False,
) -> None:
    """Predict with an exported graph. It needs no service, no registry and no network.

    An answer is shown once it is in the local log. A picture that cannot be read costs its own line alone (and the exit
    code is 2).
    """
    from pipelines import edge

    refused, model = 0, edge.open_graph(graph, int8)
    for answer in edge.predict(model, edge.pictures_in(pictures), site, log):
        if answer.refused is not None:
            refused += 1
            typer.secho(f"{answer.file}: {answer.refused}", err=True, fg="red")
        elif as_json:
            said = {"file": str(answer.file), "prediction_id": answer.prediction_id, "class": answer.name}
            shares = {"confidence": answer.confidence, "probabilities": answer.probabilities}
            typer.echo(json.dumps(said | shares | {"model_version": model.version}))
        else:
            typer.echo(f"{answer.file}: {answer.name} ({answer.confidence:.1%})")
    if refused:
        raise typer.Exit(2)


@app.command()
def upload(
    log: Log,
    to: Annotated[str, typer.Option("--to", metavar="URL", help="the service, such as https://fedloop.example:8080")],
    token: Annotated[str, typer.Option(envvar="FEDLOOP_TOKEN", help="the site's, with the scope predict")] = "",
) -> None:
    """Send the local log to the service, where each row is logged once. Interrupted, the same command goes on.

    Rows that the service refuses are named, and stay in the local log (and the exit code is 2).
    """
    from pipelines import edge_upload

    def tell(now: Uploaded) -> None:
        typer.echo(f"{now.rows} rows are logged, {now.waiting / 1e3:.0f} kB wait")

    with edge_upload.connect(to, token) as client:
        done = edge_upload.upload(log, client, tell)
    if done.rows or done.refused:
        tell(done)
    for key, (file, why) in done.refused.items():
        typer.secho(f"{file} ({key}) is refused and kept: {why}", err=True, fg="red")
    if done.refused:
        raise typer.Exit(2)
    if done.waiting:
        typer.echo("another command is writing or sending the rest; call again when it has ended")
    elif not done.rows:
        typer.echo("nothing to upload")
