"""The tables of the journal: every word of the project as rows, written before they are acted on.

Times are seconds since the epoch (UTC). JSON columns hold what is read back whole and never searched.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# --- data: what was seen, and what people say it is ---------------------------------------------------------

drops = Table(
    "drops",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("folder", String, nullable=False),
    # reading, matching (near-duplicates are looked for), ready, held (in no snapshot until a person releases it)
    Column("state", String, nullable=False),
    Column("started", Float, nullable=False),
    Column("ended", Float),
    Column("files", Integer, nullable=False, server_default="0"),  # to be read
    Column("added", Integer, nullable=False, default=0),  # occurrences
    Column("gone", Integer, nullable=False, default=0),
    Column("rejected", Integer, nullable=False, default=0),
    Column("audited", Float),  # when its labels were; null: not yet
    Column("reason", String),  # what the policy of labels said of it
)

groups = Table(  # samples that share a role, because they show the same thing
    "groups",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String, nullable=False, unique=True),  # "key:" and the user's, or the first sample's hash
    Column("role", String, nullable=False),  # train, tune, judge: for ever
    Column("given", Float, nullable=False),
)

samples = Table(
    "samples",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", LargeBinary(32), nullable=False, unique=True),
    Column("bytes", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("mode", String, nullable=False),  # Pillow's
    Column("frames", Integer, nullable=False, server_default="1"),  # of what is animated or has pages: the first counts
    Column("group_id", ForeignKey("groups.id")),  # given with the first label; null: none can be
    Column("first_seen", Float, nullable=False),
    Column("forgotten", Float),  # since when its bytes are gone for good
)

near_duplicates = Table(  # pairs of samples that show the same picture
    "near_duplicates",
    metadata,
    Column("sample_id", ForeignKey("samples.id"), primary_key=True),  # the later one
    Column("twin_id", ForeignKey("samples.id"), primary_key=True, index=True),
    Column("at", Float, nullable=False),
)

occurrences = Table(
    "occurrences",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("folder", String, nullable=False),
    Column("path", String, nullable=False),  # below the folder
    Column("sample_id", ForeignKey("samples.id"), nullable=False),
    Column("class", String, key="class_name"),  # that the path or the manifest says; null: unlabelled
    Column("group", String, key="group_key"),  # that the path or the manifest says
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
    Column("drop_id", ForeignKey("drops.id"), nullable=False),
    Column("first_seen", Float, nullable=False),
    Column("gone", Float),
    Index("ix_occurrences_folder_path", "folder", "path"),
    Index("ix_occurrences_sample_id", "sample_id"),
    Index("ix_occurrences_drop_id", "drop_id"),
)

rejections = Table(  # files that cannot be used, each with its reason; read again when their content changes
    "rejections",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("folder", String, nullable=False),
    Column("path", String, nullable=False),
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
    Column("reason", String, nullable=False),
    Column("drop_id", ForeignKey("drops.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("gone", Float),
    Index("ix_rejections_folder_path", "folder", "path"),
)

manifests = Table(  # files that say the labels of a watched folder, as they were last read
    "manifests",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("folder", String, nullable=False),
    Column("path", String, nullable=False),
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("waiting", Integer, nullable=False),  # rows whose image is not there yet
    Column("refused", Integer, nullable=False),
    Column("at", Float, nullable=False),
    UniqueConstraint("folder", "path"),
)

labels = Table(  # append-only
    "labels",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sample_id", ForeignKey("samples.id"), nullable=False, index=True),
    Column("class", String, key="class_name", nullable=False),
    Column("source", String, nullable=False),  # folder, manifest, review
    Column("by", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("drop_id", ForeignKey("drops.id")),
    Index("ix_labels_reviewed", "sample_id", sqlite_where=text("source = 'review'")),
)

flags = Table(  # labels that the audit takes for wrong, and what a person answered
    "flags",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sample_id", ForeignKey("samples.id"), nullable=False, index=True),
    Column("given", String, nullable=False),
    Column("suggested", String, nullable=False),
    Column("score", Float, nullable=False),  # out-of-sample probability of the class given
    Column("suggested_score", Float, nullable=False),
    Column("model_id", String, nullable=False),  # whose embedding told: of a stored model, or of a backbone
    Column("at", Float, nullable=False),
    Column("state", String, nullable=False, index=True),  # open, accepted, kept, relabelled, withdrawn
    Column("by", String),
    Column("answered", Float),
)

drift_checks = Table(
    "drift_checks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),  # labelled, unlabelled
    Column("model_id", ForeignKey("models.id"), nullable=False),  # whose embedding told
    Column("up_to_drop", Integer, nullable=False),  # later ones are in no check of this kind yet
    Column("figures", JSON, nullable=False),  # policies.facts.DriftCheck
    Column("at", Float, nullable=False, index=True),
)

standings = Table(  # where each sample stands now; follows from the tables above (daemon/standings.py)
    "standings",
    metadata,
    Column("sample_id", ForeignKey("samples.id"), primary_key=True),
    Column("class", String, key="class_name"),  # on which people agree; null: none, or several
    Column("role", String),
    # usable, flagged (beyond doubt), ungrouped (near to two roles), conflict, held, unlabelled, gone, forgotten
    Column("state", String, nullable=False),
    Column("drop_id", Integer),  # the last that said so
    Column("changed", Integer, nullable=False, index=True),  # number of the change that made it so
    Index("ix_standings_state_class_role", "state", "class_name", "role"),
    Index("ix_standings_state_drop_id", "state", "drop_id"),
)

stale = Table(  # samples whose standing is to be worked out before the transaction ends
    "stale",
    metadata,
    Column("sample_id", Integer, primary_key=True),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String, primary_key=True),  # hash of the content
    Column("created", Float, nullable=False),
    Column("classes", JSON, nullable=False),
    Column("counts", JSON, nullable=False),  # class -> role -> samples
    Column("left_out", JSON, nullable=False),  # reason -> samples
    Column("changed", Integer, nullable=False, server_default="0"),  # the last change to a standing that it knows of
    Column("file", String, nullable=False),
)

# --- what is asked of a target -------------------------------------------------------------------------------

constraint_files = Table(  # each content that a constraint file had, valid or not; the last valid one stands
    "constraint_files",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("target", String, nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("text", String, nullable=False),
    Column("requirement", JSON),  # null: invalid
    Column("error", String),
    Column("gone", Boolean, nullable=False, default=False),
)

# --- what was decided and done -------------------------------------------------------------------------------

decisions = Table(
    "decisions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("target", String, nullable=False),
    Column("event", String, nullable=False),  # what it answers: "drop 3", "constraints of edge changed", …
    Column("action", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("findings", JSON, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("policy", Integer, nullable=False),  # version
    Column("until", Float),
)

cycles = Table(
    "cycles",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("decision_id", ForeignKey("decisions.id"), nullable=False),
    Column("target", String, nullable=False),
    # data, constraints, stock, adopt, proof, asked (by a person, about one artifact)
    Column("trigger", String, nullable=False),
    Column("about", String),  # that artifact
    Column("state", String, nullable=False, index=True),  # running, done, failed, interrupted
    Column("outcome", String),  # promoted, kept, ask, violated, failed, interrupted
    Column("reason", String),
    Column("snapshot_id", ForeignKey("snapshots.id")),
    Column("requirement", JSON, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("started", Float, nullable=False),
    Column("ended", Float),
)

stages = Table(
    "stages",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cycle_id", ForeignKey("cycles.id"), nullable=False, index=True),
    Column("step", String, nullable=False),  # the step that it belongs to: "train test_resnet", "build 1f…"
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),  # waiting, running, done, failed, skipped
    Column("attempts", Integer, nullable=False, default=0),
    Column("outputs", JSON),
    Column("started", Float),
    Column("ended", Float),
    UniqueConstraint("cycle_id", "step", "name"),
)

attempts = Table(  # of one stage: each start of a child that runs it
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("stage_id", ForeignKey("stages.id"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("token", String, nullable=False),
    Column("started", Float, nullable=False),
    Column("ended", Float),
    Column("outcome", String),  # done, failed, interrupted, paused, timed out, waited (in vain), lost (with the daemon)
    Column("progress", JSON),  # the last that it said
    Column("last_words", String),
)

# --- what was made -------------------------------------------------------------------------------------------

models = Table(
    "models",
    metadata,
    Column("id", String, primary_key=True),
    Column("architecture", String, nullable=False),
    Column("snapshot_id", ForeignKey("snapshots.id"), nullable=False),
    Column("cycle_id", ForeignKey("cycles.id"), nullable=False),
    Column("recipe", String, nullable=False, index=True),  # hash of all that training depends on
    Column("classes", JSON, nullable=False),
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("tune_accuracy", Float),
    Column("train_seconds", Float, nullable=False),
    Column("adopted", String),  # by whom, where it was not trained here
    Column("embeds", Boolean, nullable=False, server_default="1"),  # its graph shows a classifier layer
    Column("created", Float, nullable=False),
    Column("gone", Float),  # when its folder was found missing
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", String, primary_key=True),
    Column("model_id", ForeignKey("models.id"), nullable=False, index=True),
    Column("engine", String, nullable=False),
    Column("precision", String, nullable=False),
    Column("device", String),  # null: bound to none
    Column("engine_version", String),  # of what is bound to a device
    Column("unverified", String),  # why this machine cannot run it; null: it can
    Column("artifact_mb", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("gone", Float),  # when its folder was found missing or damaged
)

measurements = Table(
    "measurements",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("artifact_id", ForeignKey("artifacts.id"), index=True),
    Column("architecture", String, nullable=False),
    Column("figures", JSON, nullable=False),  # policies.facts.Measurement; of an untrained network: weights_mb
    Column("at", Float, nullable=False),
)

benchmarks = Table(  # of architectures, untrained
    "benchmarks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("architecture", String, nullable=False, index=True),
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("classes", Integer, nullable=False),
    Column("batch_size", Integer, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("device", String, nullable=False),
    Column("variant", String, nullable=False),  # engine and precision
    Column("figures", JSON, nullable=False),  # as far as it came
    Column("error", String),  # why it came no further
    Column("at", Float, nullable=False),
)

tunings = Table(  # searches for the best settings of an architecture, that came to their end
    "tunings",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cycle_id", ForeignKey("cycles.id"), nullable=False),
    Column("target", String, nullable=False, index=True),
    Column("architecture", String, nullable=False),
    Column("snapshot_id", ForeignKey("snapshots.id"), nullable=False),
    Column("best", JSON, nullable=False),  # dotted setting -> value
    Column("trials", JSON, nullable=False),
    Column("score", Float, nullable=False),  # loss on tune
    Column("at", Float, nullable=False),
)

proofs = Table(
    "proofs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("artifact_id", ForeignKey("artifacts.id"), nullable=False, index=True),
    Column("snapshot_id", ForeignKey("snapshots.id"), nullable=False),
    Column("cycle_id", ForeignKey("cycles.id"), nullable=False),
    Column("tune_accuracy", Float),
    Column("parity", JSON),
    Column("at", Float, nullable=False),
    Column("answered_by", String),  # chip and engine; null: its answers are kept for no later proof (daemon/proofs.py)
    Column("resize", String),  # how the images came to their size
)

answers = Table(  # of an artifact to a judge sample: from these, accuracy by class and any paired test
    "answers",
    metadata,
    Column("artifact_id", ForeignKey("artifacts.id"), primary_key=True),
    Column("sample_id", ForeignKey("samples.id"), primary_key=True),
    Column("predicted", String, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("at", Float, nullable=False),
)

observations = Table(  # a champion's answers to new labelled samples that are not of the judge
    "observations",
    metadata,
    Column("artifact_id", ForeignKey("artifacts.id"), primary_key=True),
    Column("sample_id", ForeignKey("samples.id"), primary_key=True),
    Column("predicted", String, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("at", Float, nullable=False),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cycle_id", ForeignKey("cycles.id"), nullable=False, index=True),
    Column("target", String, nullable=False),
    Column("artifact_id", ForeignKey("artifacts.id"), nullable=False),
    Column("champion_id", ForeignKey("artifacts.id")),
    Column("answer", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("better", Boolean, nullable=False),
    Column("verdict", JSON, nullable=False),  # policies.facts.Verdict
    Column("facts", JSON, nullable=False),  # what it was judged on, to replay it
    Column("at", Float, nullable=False),
    # waiting (for a person), approved, refused, superseded (by a later verdict); null: it needs nobody
    Column("approval", String),
    Column("answered", Float),
    Column("answered_by", String),
    Column("because", String),  # in that person's words
)

promotions = Table(
    "promotions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("target", String, nullable=False, index=True),
    Column("artifact_id", ForeignKey("artifacts.id"), nullable=False),
    Column("cycle_id", ForeignKey("cycles.id")),
    Column("verdict_id", ForeignKey("verdicts.id")),
    # promotion, rollback, settings, move, forced (whatever the policy says)
    Column("kind", String, nullable=False),
    Column("version", Integer, nullable=False),  # Triton's
    Column("server", String, nullable=False, server_default=""),  # by name; "": the first, of an older journal
    # switching, serving, retired, undoing, failed; leaving: another server has it, this one is to forget it
    Column("state", String, nullable=False),
    Column("step", String),  # of the switch, the last that was finished
    Column("error", String),  # why it waits, or failed
    Column("reason", String, nullable=False),
    Column("by", String, nullable=False),
    Column("started", Float, nullable=False),
    Column("served", Float),  # when Triton first answered with it
    Column("ended", Float),
    UniqueConstraint("target", "version"),
)

servers = Table(  # what each Triton was found to be when it last changed
    "servers",
    metadata,
    Column("name", String, primary_key=True),
    Column("state", String, nullable=False),  # ready, away, unfit
    Column("trouble", String),  # a sentence: why it is not ready
    Column("version", String),  # as it last said
    Column("since", Float, nullable=False),
)

requests = Table(  # what people ask of a running daemon from the command line
    "requests",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("arguments", JSON, nullable=False),
    Column("by", String, nullable=False),
    Column("at", Float, nullable=False),
    # asked, working (it takes a while), owed (a training to be decided on), done, refused
    Column("state", String, nullable=False, index=True),
    Column("answer", String),
)

pauses = Table(  # while one lasts nothing is begun, and nothing promoted by the policy
    "pauses",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("target", String),  # null: all of them
    Column("by", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("because", String),
    Column("ended", Float),
    Column("ended_by", String),
)

configurations = Table(  # as they were read: at a start, and again while a daemon ran
    "configurations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("because", String, nullable=False),
    Column("digest", String, nullable=False),  # SHA-256 of config.toml
    Column("settings", JSON),  # in force from then on; null: it was refused
    Column("error", String),  # why it was
)

# --- what is told outward ---------------------------------------------------------------------------------------

notices = Table(  # what happened and may be told; triggers write them with what they tell of (migration 0012)
    "notices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),  # daemon.notices.KINDS
    Column("target", String),  # null: it concerns all
    Column("about", String, nullable=False),  # d3, v12, c4, edge/7, drop 5, edge.toml, the daemon
    Column("what", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("see", String, nullable=False),  # the command of `relearn` that says more
    Column("at", Float, nullable=False),
)

listeners = Table(  # the entries of [[notify]]
    "listeners",
    metadata,
    Column("name", String, primary_key=True),
    Column("heard", Integer, nullable=False),  # the last notice that was handed on to it, or passed over
    Column("since", Float, nullable=False),
)

deliveries = Table(  # of one notice to one entry; the word of an entry that is gone stays
    "deliveries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("listener", String, nullable=False),
    Column("notice_id", ForeignKey("notices.id"), nullable=False),
    Column("state", String, nullable=False),  # waiting, sending, sent, given up
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_try", Float, nullable=False),
    Column("sent", Float),
    Column("error", String),  # of the last attempt
    UniqueConstraint("listener", "notice_id"),
    Index("ix_deliveries_listener_state", "listener", "state"),
)

# --- what stays on the disk ------------------------------------------------------------------------------------

pins = Table(  # what people want kept, whatever else says
    "pins",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),  # model, artifact, snapshot, cycle
    Column("name", String, nullable=False),
    Column("by", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("ended", Float),
    Column("ended_by", String),
)

erasures = Table(  # each time that an image was forgotten
    "erasures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sample_id", ForeignKey("samples.id"), nullable=False, index=True),
    Column("request_id", ForeignKey("requests.id")),
    Column("by", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("erased", Float),  # when the last of its bytes was gone; null: they are being removed
    Column("undone", Float),  # since when it may be read again
    Column("undone_by", String),
)

sweeps = Table(  # each look through the state folder, and what it removed
    "sweeps",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("because", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("bytes", Integer, nullable=False),  # of the state folder, before
    Column("freed", Integer, nullable=False),
    Column("removed", JSON, nullable=False),  # kind, path, number, bytes, reason
    Column("ended", Float),
)
