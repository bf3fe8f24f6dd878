"""The `fedloop` command: one thin function per verb. Heavy libraries are imported by the verb that needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import alarms, cases, desk, edge, log, tokens
from models.errors import FedloopError

app = typer.Typer(
    help="Keeps a model healthy when its training data may never leave the places where it was made.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

TaskName = Annotated[
    str, typer.Argument(help="digits, retina, pneumonia, or your own as package.module:TASK", show_default=True)
]


class _Sentences(typer.core.TyperGroup):
    """Errors that the user can fix are sentences and exit code 2, never stack traces."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FedloopError as error:
            typer.secho(f"fedloop: {error}", err=True, fg="red")
            raise SystemExit(2) from error
        except KeyboardInterrupt:
            typer.secho("fedloop: interrupted; the same command again takes up where it stopped", err=True)
            raise SystemExit(130) from None


app.info.cls = _Sentences
app.add_typer(cases.app, name="cases")
app.add_typer(log.app, name="log")
app.add_typer(alarms.app, name="alarms")


def _settings(task: str) -> Any:
    from flows.console import tell_progress
    from pipelines.settings import load_settings

    # The steps say in a line what Prefect would say in three.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    settings = load_settings(task)
    settings.apply_environment()
    tell_progress()
    return settings


@app.command()
def run(
    task: TaskName = "digits",
    severity: Annotated[str, typer.Option(help="how dark it gets: mild, medium, strong or severe")] = "strong",
) -> None:
    """Rehearse the whole loop on this machine: train, deploy, watch, drift, alarm, retrain, recover.

    Ends with a table, a picture and `summary.json` under out/TASK. Steps whose inputs did not change are reused.
    """
    from flows.console import tell_progress
    from flows.rehearse import rehearse

    tell_progress()
    rehearse(task, severity)


@app.command()
def up(task: TaskName = "digits") -> None:
    """Start Prefect, MLflow, the dashboard, the prediction service and the served flows; logs in .fedloop/logs.

    Where no model serves yet, the first one is trained at once. Ports: FEDLOOP_PORTS__PREFECT and so on.
    """
    from flows import processes
    from flows.console import say

    settings = _settings(task)
    processes.start(settings, say=say)
    _bootstrap(settings, say)
    for state in processes.state(settings):
        say(f"{state.title}: {state.url}")


def _bootstrap(settings: Any, say: Any) -> None:
    from pipelines import registry

    if registry.by_alias(settings, "champion") is None:
        from flows.retrain import retrain

        say("no model serves yet: the first one is trained now")
        retrain(task=settings.task_name, cause="bootstrap")


@app.command()
def down(task: TaskName = "digits") -> None:
    """Stop what `up` started; also what a killed `up` or `run` left behind."""
    from flows import processes
    from flows.console import say

    processes.stop(_settings(task), say=say)


@app.command()
def status(task: TaskName = "digits") -> None:
    """Which processes run and where, who is champion, what the monitor saw and decided."""
    from flows import processes
    from flows.console import CONSOLE
    from flows.overview import house_table, loop_table

    settings = _settings(task)
    CONSOLE.print(house_table(processes.state(settings)))
    CONSOLE.print(loop_table(settings))


@app.command()
def ingest(task: TaskName = "digits") -> None:
    """Validate the task's rows into content-addressed snapshots at the sites; bad rows go to quarantine."""
    from pipelines.gather import gather

    gather(_settings(task))


@app.command()
def train(task: TaskName = "digits") -> None:
    """Ingest, buy labels within the budget, and run the federated rounds; an interrupted run is taken up again."""
    from pipelines.gather import gather
    from pipelines.loop import buy_labels, fit

    settings = _settings(task)
    material = gather(settings)
    trained = fit(settings, material, buy_labels(settings, material))
    typer.echo(f"weights of run {trained.key} after {trained.rounds} rounds: {trained.folder}")


@app.command()
def evaluate(task: TaskName = "digits") -> None:
    """Judge the trained model against the champion and register it as challenger, with every figure the gate saw."""
    from flows.console import CONSOLE
    from flows.overview import evaluation_table
    from pipelines.challenger import enter_registry, judge_challenger
    from pipelines.gather import gather
    from pipelines.loop import buy_labels, fit

    settings = _settings(task)
    material = gather(settings)
    labelled = buy_labels(settings, material)
    trained = fit(settings, material, labelled)
    found = judge_challenger(settings, material, trained)
    enter_registry(settings, material, labelled, trained, found)
    CONSOLE.print(evaluation_table(found))


@app.command()
def diagnose(
    task: Annotated[
        str, typer.Argument(help="digits, retina, pneumonia, your own, or a fleet's table: heart, keyboard")
    ] = "digits",
    version: Annotated[int, typer.Option(help="the version; 0: the champion, else the challenger")] = 0,
) -> None:
    """Why does a version err? Counts by cause, and reports with pictures: one at every site, one for the federation.

    Of a fleet's task, the model that it trains by its recipe, with SHAP values instead of heat maps.
    """
    from flows.console import CONSOLE, tell_progress
    from flows.overview import diagnosis_table
    from models.fleet_task import BUILT_IN
    from pipelines.diagnose import diagnose_version

    if task in BUILT_IN:
        from pipelines.diagnose_table import diagnose_fleet
        from pipelines.settings import DiagnosisSettings

        tell_progress()
        page, path = diagnose_fleet(task, Path(os.environ.get("FEDLOOP_HOME", ".fedloop")), DiagnosisSettings())
        typer.echo(f"{sum(page.causes.values())} errors in {page.rows} rows: {page.causes}\nreport: {path}")
        return
    settings = _settings(task)
    found, path = diagnose_version(settings, version)
    CONSOLE.print(diagnosis_table(found))
    sites = settings.folder / "sites" / "*" / "reports" / path.name
    typer.echo(f"report: {path}\nat the sites: {sites}")


@app.command()
def promote(
    task: TaskName = "digits",
    version: Annotated[int, typer.Option(help="the version; 0: the one with the alias challenger")] = 0,
    reason: Annotated[str, typer.Option(help="goes into the ledger; by default: by hand")] = "",
    override_cases: Annotated[
        str, typer.Option(metavar="NAME", help="who answers for customers' cases that are lost; takes a --reason")
    ] = "",
) -> None:
    """Make a version that passed the gate the champion at once, on probation; the service takes it up within seconds.

    A version that fails customers' cases which the champion passes is refused, unless a named person overrides that.
    """
    from pipelines.promotion import Override, promote_by_hand

    override = Override(override_cases, reason) if override_cases else None
    number = promote_by_hand(_settings(task), version, reason or "by hand", override)
    typer.echo(f"version {number} is champion")


@app.command()
def rollback(
    task: TaskName = "digits", reason: Annotated[str, typer.Option(help="goes into the ledger")] = "by hand"
) -> None:
    """Make the fallback, the version that served before, champion again; the service follows within seconds.

    A champion on probation that errs, fails or slows down against the one before it is rolled back without being asked.
    """
    from pipelines import release

    typer.echo(f"version {release.rollback(_settings(task), reason)} is champion again")


@app.command()
def hold(
    task: TaskName = "digits", reason: Annotated[str, typer.Option(help="goes into the ledger")] = "by hand"
) -> None:
    """Take the version in shadow or canary out of it: the champion answers alone."""
    from pipelines import release

    typer.echo(f"version {release.hold(_settings(task), reason)} is held")


@app.command()
def release(task: TaskName = "digits") -> None:
    """Look once at the versions on their way from shadow to champion and move, hold or roll back what is due."""
    from flows.console import CONSOLE
    from flows.overview import moves_table
    from pipelines import steps

    settings = _settings(task)
    steps.advance(settings)
    CONSOLE.print(moves_table(settings))


@app.command()
def export(
    folder: Annotated[Path, typer.Option("--onnx", help="write model.onnx and model.json into this folder")],
    task: TaskName = "digits",
    int8: Annotated[bool, typer.Option("--int8", help="also a static int8 variant, its cost measured")] = False,
) -> None:
    """The champion as an ONNX graph, for machines without torch; refused when it answers otherwise than it should."""
    from pipelines.export import export_champion

    done = export_champion(_settings(task), folder, int8)
    typer.echo(f"version {done.version}: probabilities differ by {done.difference:.1g} at most on {done.rows} rows")
    if done.int8_accuracy is not None:
        typer.echo(f"accuracy on held-out rows: {done.accuracy:.4f}, as int8 {done.int8_accuracy:.4f}")


@app.command()
def monitor(task: TaskName = "digits") -> None:
    """Look at the windows of traffic that nobody has looked at yet; says what was odd and whether it is an alarm."""
    from pipelines.watch import look

    reports = look(_settings(task))
    typer.echo(f"{len(reports)} windows looked at, {sum(report.odd for report in reports)} odd")


@app.command()
def traffic(
    task: TaskName = "digits",
    drift: Annotated[str, typer.Option(help="a named drift: low-light; empty for traffic as in training")] = "",
    severity: Annotated[str, typer.Option(help="mild, medium, strong or severe")] = "strong",
    requests: Annotated[int, typer.Option(min=1, help="how many pictures to send")] = 1000,
    site: Annotated[list[str] | None, typer.Option(help="the drift hits these sites only (may be repeated)")] = None,
    feedback: Annotated[float, typer.Option(min=0, max=1, help="share whose true label follows later")] = 0.2,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="requests under way at once")] = 8,
) -> None:
    """Replay pictures of the task's live pool at the running service."""
    from flows.traffic import send_traffic

    settings = _settings(task)
    if not send_traffic(settings, drift, severity, requests, site, feedback, concurrency):
        sys.exit(1)


@app.command()
def simulate(
    task: Annotated[
        str, typer.Argument(help="keyboard, coupon, heart, mnist, an image task, or your own as package.module:TASK")
    ] = "keyboard",
    population: Annotated[int | None, typer.Option(help="devices; by default the task's own number")] = None,
    cohort: Annotated[int | None, typer.Option(help="reports a round wants; by default the task's")] = None,
    rounds: Annotated[int, typer.Option(help="rounds, abandoned ones included")] = 100,
    strategy: Annotated[
        str, typer.Option(help="fedavg, fedprox, fedadam, scaffold …; a wrong one lists all")
    ] = "fedavg",
    compression: Annotated[str, typer.Option(help="of what devices send: none, 8bit, 4bit, topk …")] = "none",
    asynchronous: Annotated[bool, typer.Option("--asynchronous", help="FedBuff; --cohort is the buffer")] = False,
    always_available: Annotated[
        bool, typer.Option("--always-available", help="no virtual clock: whoever is drawn reports")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="passes over a device's rows in a round")] = None,
    batch_size: Annotated[int | None, typer.Option(help="rows of a local step; 0: all of a device's")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of the local steps")] = None,
    seed: Annotated[int, typer.Option(help="of everything that is drawn")] = 0,
    processes: Annotated[int, typer.Option(min=0, help="that train side by side; 0 measures what is fastest")] = 0,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="compute in bfloat16 (weights stay float32)")] = False,
    personal: Annotated[int, typer.Option(min=0, help="compare with models of their own at so many devices")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the figures here")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the fleet's rounds here (PNG)")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="begin anew instead of going on with an earlier call")] = False,
) -> None:
    """Simulate a fleet on a virtual clock: who is available, who drops out, what the model learns from the rest.

    Interrupted, the same command goes on from its last checkpoint and ends with the same weights.
    """
    from flows.simulation import simulate as simulate_and_tell
    from pipelines.simulate import simulation_of

    work = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    simulation = simulation_of(
        task, population, cohort, rounds, work, strategy=strategy, compression=compression, asynchronous=asynchronous,
        always_available=always_available, seed=seed, bfloat16=bfloat16,
    )  # fmt: skip
    simulate_and_tell(simulation, processes, personal, json, plot, fresh)


@app.command()
def report(task: TaskName = "digits") -> None:
    """The table of the last rehearsal, and where its picture is."""
    from flows.console import CONSOLE
    from flows.overview import last_rehearsal

    settings = _settings(task)
    CONSOLE.print(last_rehearsal(settings))


app.command("desk-token")(desk.token)
app.add_typer(desk.labels, name="labels")
app.add_typer(tokens.app, name="tokens")
app.add_typer(edge.app, name="edge")


if __name__ == "__main__":
    app()
