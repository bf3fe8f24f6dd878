"""One typed settings object. Defaults here, `conf/<task>.toml` over them, `FEDLOOP_*` environment variables on top.

Nested values take a double underscore: `FEDLOOP_TRAINING__ROUNDS=40`. Everything that could differ between a laptop
and a federation of hospitals is a value here, so moving from one to the other changes no code.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from models.errors import BadInput
from models.task import Task, find_task
from monitoring.drift import DriftPolicy
from monitoring.engines import in_schema
from monitoring.findings import MonitorPolicy
from monitoring.policy import AlarmPolicy
from monitoring.retention import RetentionPolicy

# Off for every dependency. DO_NOT_TRACK must be the word: MLflow ignores "1".
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}


class SiteSettings(BaseModel):
    """How a pooled public data set becomes sites in a rehearsal."""

    count: int = Field(5, ge=1)
    label_mix_alpha: float = Field(1.0, gt=0, description="Dirichlet concentration; small is more skewed")
    camera_spread: float = Field(0.1, ge=0, le=0.5, description="how far gains differ between sites")


class LabelSettings(BaseModel):
    """What labels may cost, and how far one speaks for its cluster."""

    budget_share: float = Field(0.10, gt=0, le=1, description="share of the rows whose labels are bought")
    most: int = Field(0, ge=0, description="labels that one retraining buys at most; 0: no limit but the share")
    strategy: Literal["central", "near", "typical", "coverage", "uncertainty", "margin", "drifted", "random"] = Field(
        "central", description="whose labels are bought; pipelines/federated/choosing.py says how"
    )
    per_cluster: int = Field(1, ge=1, description="rows bought to stand for one cluster")
    error_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="of the budget, at most, for clusters where the champion met what it had not seen",
    )
    spared_within: float = Field(
        0.02, ge=0, description="no label is bought where adapting alone brings the metric so near to what it was"
    )
    lloyd_rounds: int = Field(3, ge=0, description="federated k-means iterations after the merge; 0: one-shot")
    spread: Literal["graph", "cluster", "none"] = "graph"
    spread_weight: float = Field(0.3, ge=0, le=1, description="weight of a sure spread label in training")
    spread_confidence: float = Field(0.75, ge=0, le=1, description="a spread label is at least so sure")
    spread_check: float = Field(0.6, ge=0, le=1, description="share of held-out labels it must get right at a site")
    annotator: Literal["oracle", "desk"] = Field("oracle", description="the archive's truth, or people at /desk")
    opinions: int = Field(1, ge=1, le=2, description="people at the desk that must agree on a row")
    patience_s: float = Field(8 * 3600.0, ge=0, description="how long a run waits for the desk")

    def budget(self, rows: int, first: bool) -> int:
        """How many labels so many new rows are worth; first: of a model that has none yet, which `most` spares."""
        share = max(1, int(self.budget_share * rows))
        return share if first or not self.most else min(share, self.most)

    def inputs(self) -> dict[str, Any]:
        """The values that decide what is bought, were it bought: how long one waits for it is none of them."""
        return self.model_dump(exclude={"patience_s", "spared_within", "most"})


class TrainingSettings(BaseModel):
    """Federated training. `server` is the server's optimizer on the averaged update."""

    rounds: int = Field(40, ge=1)
    adapt_rounds: int = Field(8, ge=1, description="under the new light, before new labels are bought")
    retrain_rounds: int = Field(12, ge=1)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(10, ge=1)
    learning_rate: float = Field(0.06, gt=0)
    final_rate: float = Field(0.1, gt=0, le=1, description="share of the learning rate left in the last round")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    server: Literal["sgd", "adam"] = "sgd"
    server_learning_rate: float = Field(1.0, gt=0)
    cohort_goal: int = Field(0, ge=0, description="sites a round; 0: all of them")
    minimum_reports: float = Field(0.8, gt=0, le=1, description="share of the goal that must report")
    clip_norm: float = Field(0.0, ge=0, description="L2 bound of a site's update; 0: none")
    threads: int = Field(1, ge=1)


class GateSettings(BaseModel):
    """What a challenger must hold against the champion."""

    overall_margin: float = Field(0.01, ge=0, description="how much worse the metric may be overall")
    site_margin: float = Field(0.05, ge=0, description="how much worse it may be at any one site")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    bootstrap: int = Field(200, ge=20, description="paired bootstrap replicates")
    site_minimum_rows: int = Field(20, ge=1, description="sites with fewer rows cannot veto")
    fresh_minimum_rows: int = Field(30, ge=1, description="rows of a run's traffic; fewer say nothing apart")
    fresh_confidence: float = Field(0.8, gt=0.5, lt=1, description="how sure a gain on such rows must be")


class ReleaseSettings(BaseModel):
    """How a version that passed the gate comes to serve: beside the champion, for a share of the sites, for all."""

    steps: bool | None = Field(None, description="shadow and canary first; None: live yes, a rehearsal goes straight")
    interval_s: float = Field(60.0, gt=0, description="how often the steps are looked at")
    shadow_rows: int = Field(500, ge=1, le=5000, description="rows predicted beside the champion before it answers any")
    shadow_s: float = Field(300.0, ge=0, description="and for so long at least")
    canary_share: float = Field(0.2, gt=0, le=1, description="of the sites; at least one, whatever the share")
    canary_rows: int = Field(250, ge=1, le=5000, description="rows the challenger answers before all sites get it")
    canary_s: float = Field(300.0, ge=0)
    probation_rows: int = Field(1000, ge=1, le=5000, description="rows the new champion answers under watch")
    probation_s: float = Field(3600.0, ge=0)
    patience_s: float = Field(7 * 86_400.0, gt=0, description="a challenger without enough evidence by then is held")
    first_rows: int = Field(30, ge=10, description="nothing is held or rolled back on fewer rows or labels")
    score_margin: float = Field(0.02, ge=0, description="how much worse its share of right answers may be, same rows")
    score_confidence: float = Field(0.99, gt=0.5, lt=1, description="how sure a loss must be to hold or roll back")
    minimum_agreement: float = Field(0.2, ge=0, le=1, description="with the other, while there are no labels")
    error_margin: float = Field(0.01, ge=0, lt=1, description="further share of requests or rows that may fail")
    abstain_margin: float = Field(0.1, ge=0, lt=1, description="further share of rows that may be abstained from")
    latency_ratio: float = Field(2.0, gt=1, description="how many times slower on the same rows")


class DiagnosisSettings(BaseModel):
    """Looking for the causes of a version's errors."""

    rate: float = Field(0.05, gt=0, lt=0.5, description="of rows like the learned ones, how many may be called unseen")
    clusters: int = Field(60, ge=1, description="federated clusters that say what other sites have seen")
    explained: int = Field(24, ge=0, description="errors at most that a site explains one by one")
    pictures: bool = Field(False, description="live: the federation's report may show pictures, all sites being ours")


class ServiceSettings(BaseModel):
    """The prediction service."""

    replicas: int = Field(1, ge=1, description="processes on the one port and the one log")
    json_logs: bool = Field(False, description="log lines as JSON objects")
    abstain_rate: float = Field(0.005, ge=0, lt=0.5, description="share of normal rows left to a person; 0: none")
    abstain_queue: int = Field(20, ge=0, description="such rows that wait at a site's desk at most, the newest first")


class PortSettings(BaseModel):
    prefect: int = 4200
    mlflow: int = 5000
    dashboard: int = 8000
    service: int = 8080


class RetrainSettings(BaseModel):
    """When a decision may become a run."""

    minimum_new_rows: int = Field(500, ge=1, description="rows of drifted traffic needed before it starts")
    maximum_new_rows: int = Field(5000, ge=1)
    cron: str = "0 3 * * 0"
    monitor_interval_s: float = Field(180.0, gt=0)
    reconcile_interval_s: float = Field(120.0, gt=0)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="FEDLOOP_", env_nested_delimiter="__", extra="forbid")

    task_name: str = "digits"
    stage: Literal["live", "rehearsal"] = "live"
    seed: int = 0
    home: Path = Path(".fedloop")
    out: Path = Path("out")
    host: str = "127.0.0.1"
    ports: PortSettings = PortSettings()
    tracking_uri: str = ""
    log_url: str = ""
    sites: SiteSettings = SiteSettings()
    labels: LabelSettings = LabelSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    diagnosis: DiagnosisSettings = DiagnosisSettings()
    drift: DriftPolicy = DriftPolicy()
    monitors: MonitorPolicy = MonitorPolicy()
    alarm: AlarmPolicy = AlarmPolicy()
    log: RetentionPolicy = RetentionPolicy()
    retrain: RetrainSettings = RetrainSettings()
    release: ReleaseSettings = ReleaseSettings()
    service: ServiceSettings = ServiceSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's values arrive as init arguments, and the environment goes over the file.
        return (env_settings, init_settings)

    @property
    def task(self) -> Task:
        return find_task(self.task_name)

    @property
    def slug(self) -> str:
        """The task's name as folders and registries spell it."""
        return self.task.name

    @property
    def folder(self) -> Path:
        """What belongs to this task and stage: site stores, training states, the log and its images.

        A rehearsal has a folder (and a registered model) of its own: it never touches the live champion.
        """
        return self.home.absolute() / self.stage / self.slug

    @property
    def model_name(self) -> str:
        """The registered model."""
        return self.slug if self.stage == "live" else f"{self.slug}-rehearsal"

    @property
    def steps(self) -> bool:
        """Whether versions are released by steps."""
        return self.stage == "live" if self.release.steps is None else self.release.steps

    @property
    def registry_uri(self) -> str:
        """MLflow's tracking and registry store: SQLite under `home` unless `tracking_uri` names a server."""
        return self.tracking_uri or f"sqlite:///{self.home.absolute() / 'mlflow' / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        return self.home.absolute() / "mlflow" / "artifacts"

    @property
    def database_url(self) -> str:
        """The log database (traffic, windows, decisions, promotions).

        In PostgreSQL each task and stage has a schema of its own; a URL of SQLite must not be shared between them.
        """
        return in_schema(self.log_url, f"fedloop_{self.model_name}") or f"sqlite:///{self.folder / 'log.db'}"

    @property
    def images(self) -> Path:
        """The image store of the traffic log."""
        return self.folder / "images"

    def next_budget(self, version: int) -> Path:
        """What a version's diagnosis asks of the next labels."""
        return self.folder / "reports" / f"next-budget-{version}.npz"

    @property
    def spool(self) -> Path:
        """Rows that the service has answered while the log database was away."""
        return self.folder / "spool"

    @property
    def dashboard(self) -> Path:
        """The Evidently workspace."""
        return self.home.absolute() / "evidently"

    def url(self, name: Literal["prefect", "mlflow", "dashboard", "service"]) -> str:
        return f"http://{self.host}:{getattr(self.ports, name)}"

    def environment(self) -> dict[str, str]:
        """Environment variables for this process and its children, before any dependency is imported."""
        home = self.home.absolute()
        return TELEMETRY_OFF | {
            "FEDLOOP_TASK_NAME": self.task_name,
            "FEDLOOP_STAGE": self.stage,
            "FEDLOOP_HOME": str(home),
            "FEDLOOP_OUT": str(self.out.absolute()),
            **{f"FEDLOOP_PORTS__{name.upper()}": str(port) for name, port in self.ports},
            "MLFLOW_TRACKING_URI": self.registry_uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_LOCAL_STORAGE_PATH": str(home / "prefect" / "storage"),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "prefect" / "storage"),
            "PREFECT_API_URL": self.url("prefect") + "/api",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "fedloop",
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
            # In memory, a restart of the server would crash healthy runs.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "60",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        }

    def apply_environment(self) -> None:
        os.environ.update(self.environment())


def load_settings(task_name: str | None = None, **overrides: Any) -> Settings:
    """Settings for a task: its recipe, then `conf/<task>.toml`, then `overrides`, then the environment.

    Raises:
        BadInput: an unknown task, a broken file, or a value that does not fit; the message names it.
    """
    name = task_name or os.environ.get("FEDLOOP_TASK_NAME") or "digits"
    task = find_task(name)
    values: dict[str, Any] = _merge({}, dict(task.recipe))
    path = Path(os.environ.get("FEDLOOP_CONF", "conf")) / f"{task.name}.toml"
    if path.is_file():
        try:
            values = _merge(values, tomllib.loads(path.read_text()))
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"{path} is not valid TOML: {error}") from error
    values = _merge(values, overrides)
    try:
        if task_name:
            os.environ["FEDLOOP_TASK_NAME"] = task_name
        return Settings(**(values | {"task_name": name}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"setting {where!r}: {first['msg']} (looked in {path} and FEDLOOP_*)") from error


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
