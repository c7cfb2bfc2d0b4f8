"""What each sample shows, as people last said: the folder it lies in, or what was answered in review since.

The latest human act wins: a file that is moved to another class folder after a review is a newer one. One that is
touched, renamed, or taken away and put back is none: what was answered of that class folder stands.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, Subquery, case, exists, func, literal_column, select, true

from daemon.schema import drops, labels, occurrences, standings

REVIEW = "review"


def current() -> Subquery:
    """sample_id, class_name and drop_id of each occurrence that is live and labelled, held drops apart.

    A sample has several rows where it lies in several places; where they differ in class it is in conflict.
    """
    return _current(occurrences.c.class_name.is_not(None) & (drops.c.state != "held"))


def held() -> Subquery:
    """The same of what is held."""
    return _current(occurrences.c.class_name.is_not(None) & (drops.c.state == "held"))


def of_samples(ids: Select[int]) -> Subquery:
    """The same of these samples, held drops and what is unlabelled too: with `held` for each row."""
    return _current(occurrences.c.sample_id.in_(ids), labels.c.sample_id.in_(ids))


def conflicting() -> Select[int]:
    """The sample_id of each sample that stands in several classes at once."""
    return select(standings.c.sample_id).where(standings.c.state == "conflict")


def reviewed() -> ColumnElement[bool]:
    """Which labels are people's answers; the word is written out, since a partial index is of these."""
    return labels.c.source == literal_column(f"'{REVIEW}'")


def _current(which: ColumnElement[bool], reviews: ColumnElement[bool] | None = None) -> Subquery:
    newest = (
        select(labels.c.sample_id, func.max(labels.c.id).label("id"))
        .where(reviewed())
        .where(true() if reviews is None else reviews)
        .group_by(labels.c.sample_id)
        .subquery()
    )
    review = (
        select(labels.c.sample_id, labels.c.class_name, labels.c.at).join(newest, newest.c.id == labels.c.id).subquery()
    )
    then = occurrences.alias()
    # The review was of this class: a file of the sample lay in its folder at that moment.
    is_reviewed = review.c.at.is_not(None) & exists().where(
        then.c.sample_id == occurrences.c.sample_id,
        then.c.class_name == occurrences.c.class_name,
        then.c.first_seen <= review.c.at,
        then.c.gone.is_(None) | (then.c.gone > review.c.at),
    )
    return (
        select(
            occurrences.c.sample_id,
            occurrences.c.drop_id,
            case((is_reviewed, review.c.class_name), else_=occurrences.c.class_name).label("class_name"),
            case((is_reviewed, True), else_=False).label("reviewed"),
            (drops.c.state == "held").label("held"),
        )
        .join(drops, drops.c.id == occurrences.c.drop_id)
        .outerjoin(review, review.c.sample_id == occurrences.c.sample_id)
        .where(occurrences.c.gone.is_(None), which)
        .subquery()
    )
