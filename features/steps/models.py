"""Steps on models on a machine: their files, the catalog, conversions, and the hive's preflight of them."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from behave import given, then, when
from features.support import made_models, observing
from features.support.models import give_embedded_model, rename_in_catalog
from features.support.observing import call
from features.support.tables import cells, check_fields, values
from features.support.workers import START_S
from features.support.world import World

CONVERTED = re.compile(r"[0-9a-f]{64}-\w+")
"""The name of a conversion that is complete."""


def catalog_rows(world: World, machine: str) -> list[dict[str, Any]]:
    """The rows of a machine's model catalog."""
    return observing.rows(world.fleet.sandbox(machine).state / "models.db", "models")


def conversions(world: World, machine: str) -> list[Path]:
    """The converted models of a machine, complete or not."""
    folder = world.fleet.sandbox(machine).state / "models" / "ct2"
    return sorted(path for path in folder.glob("*") if path.is_dir() and path.name != ".locks")


@given('the file "{path:Text}" is {model}')
def file_is_model(context: Any, path: str, model: str) -> None:
    made_models.write_model(model, Path(context.world.fill(path)))


@given('"{name:Text}" has the embedded model in {compute_type:w}')
def has_model_in(context: Any, name: str, compute_type: str) -> None:
    give_embedded_model(context.world.fleet.sandbox(name), compute_type)


@given('a hive on "{name:Text}" that has the embedded model in {compute_type:w}')
def hive_with_model_in(context: Any, name: str, compute_type: str) -> None:
    has_model_in(context, name, compute_type)
    context.world.fleet.start_hive(name)


@given('a hive on "{name:Text}" that has the embedded model, pulled from the hub as "{repo:Text}"')
def hive_with_model_of_hub(context: Any, name: str, repo: str) -> None:
    sandbox = context.world.fleet.sandbox(name)
    give_embedded_model(sandbox)
    rename_in_catalog(sandbox, repo)
    context.world.fleet.start_hive(name)


@given('a hive on "{name:Text}"')
def hive(context: Any, name: str) -> None:
    context.world.fleet.start_hive(name)


@given('"{name:Text}" has the embedded model\'s file alone')
def has_file_alone(context: Any, name: str) -> None:
    sandbox = context.world.fleet.sandbox(name)
    give_embedded_model(sandbox)
    shutil.rmtree(sandbox.state / "models" / "ct2")


@when('"{machine:Text}" has received {size:d} MB of the file')
def has_received(context: Any, machine: str, size: int) -> None:
    models = context.world.fleet.sandbox(machine).state / "models"

    def received() -> bool:
        return sum(path.stat().st_size for path in models.rglob("*.partial")) >= size * 1_048_576

    context.world.command.wait_for(received, START_S, f"{size} MB received")


@when('the conversion on "{machine:Text}" is under way')
def conversion_is_under_way(context: Any, machine: str) -> None:
    ct2 = context.world.fleet.sandbox(machine).state / "models" / "ct2"

    def grows() -> bool:
        return any(path.stat().st_size > 1_000_000 for path in ct2.rglob("model.bin"))

    context.world.command.wait_for(grows, START_S, "a conversion")


@when('the only model\'s file on "{machine:Text}" is removed')
def remove_model_file(context: Any, machine: str) -> None:
    (row,) = catalog_rows(context.world, machine)
    Path(row["local_path"]).unlink()


@then('"{machine:Text}" has no converted model')
def has_no_conversion(context: Any, machine: str) -> None:
    names = [folder.name for folder in conversions(context.world, machine)]
    assert [name for name in names if CONVERTED.fullmatch(name)] == [], names


@then('"{machine:Text}" has one converted model and nothing half done')
def has_one_conversion(context: Any, machine: str) -> None:
    names = [folder.name for folder in conversions(context.world, machine)]
    assert [bool(CONVERTED.fullmatch(name)) for name in names] == [True], names


@then('"{machine:Text}" has no partial file')
def has_no_partial_file(context: Any, machine: str) -> None:
    models = context.world.fleet.sandbox(machine).state / "models"
    assert list(models.rglob("*.partial")) == []


@then('the catalog of "{machine:Text}" has one model, with')
def catalog_has(context: Any, machine: str) -> None:
    found = catalog_rows(context.world, machine)
    assert len(found) == 1, found
    check_fields(found[0], values(context.world, context.table))


@then('the catalog of "{machine:Text}" has no model')
def catalog_is_empty(context: Any, machine: str) -> None:
    assert catalog_rows(context.world, machine) == []


@then(
    'that model of "{machine:Text}" was pulled during the command; '
    "its row has the size and digest of its file"
)
def row_fits_file(context: Any, machine: str) -> None:
    (row,) = catalog_rows(context.world, machine)
    content = Path(row["local_path"]).read_bytes()
    assert (row["size_bytes"], row["digest"]) == (len(content), hashlib.sha256(content).hexdigest()), row
    last = context.world.last
    assert int(last.started_unix) <= row["downloaded_at_unix"] <= last.started_unix + last.duration_s, row


@then('that model of "{machine:Text}" was used during the command')
def row_was_used(context: Any, machine: str) -> None:
    (row,) = catalog_rows(context.world, machine)
    last = context.world.last
    assert int(last.started_unix) <= row["last_used_unix"] <= last.started_unix + last.duration_s, row


@then('stdout is the path of that model\'s file on "{machine:Text}"')
def stdout_is_path(context: Any, machine: str) -> None:
    (row,) = catalog_rows(context.world, machine)
    assert context.world.last.stdout == row["local_path"] + "\n", context.world.last
    assert Path(row["local_path"]).is_file(), row


@then('the hive on "{machine:Text}" lists one model, with')
def hive_lists_model(context: Any, machine: str) -> None:
    listed = _records(context.world, machine)
    assert len(listed) == 1, listed
    check_fields(listed[0], values(context.world, context.table))


@then('the record on "{machine:Text}" has what the gguf library reads from the file')
def record_fits_header(context: Any, machine: str) -> None:
    (record,) = _records(context.world, machine)
    check_fields(record, made_models.header_of(Path(record["local_path"])))


def _records(world: World, machine: str) -> list[dict[str, Any]]:
    answer = call("GET", f"{world.fleet.machine(machine).hive_url}/v1/models")
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json()["models"]
    return found


@then('"{machine:Text}" has "{path:Text}" converted to {compute_type:w}, with')
def is_converted(context: Any, machine: str, path: str, compute_type: str) -> None:
    digest = hashlib.sha256(Path(context.world.fill(path)).read_bytes()).hexdigest()
    (folder,) = conversions(context.world, machine)
    assert folder.name == f"{digest}-{compute_type}", folder
    missing = [row[0] for row in cells(context.table) if not (folder / row[0]).stat().st_size]
    assert missing == [], missing


@then('no model was converted on "{machine:Text}"')
def nothing_converted(context: Any, machine: str) -> None:
    hive_log = context.world.fleet.machine(machine).hive_log
    assert hive_log.exists(), hive_log
    assert observing.log_lines(hive_log, "conversion_started") == []


@then('no model was downloaded on "{machine:Text}"')
def nothing_downloaded(context: Any, machine: str) -> None:
    hive_log = context.world.fleet.machine(machine).hive_log
    assert hive_log.exists(), hive_log
    assert observing.log_lines(hive_log, "download_started") == []


@then('the vocabulary of the model converted on "{machine:Text}" has {count:d} entries')
def vocabulary_has(context: Any, machine: str, count: int) -> None:
    (folder,) = conversions(context.world, machine)
    assert len(made_models.vocabulary_of(folder)) == count, folder


@then('the partial file on "{machine:Text}" has {size:d} bytes')
def partial_file_has(context: Any, machine: str, size: int) -> None:
    models = context.world.fleet.sandbox(machine).state / "models"
    sizes = [path.stat().st_size for path in models.rglob("*.partial")]
    assert sizes == [size], sizes


@then('the hive on "{machine:Text}" has logged the preflight')
def preflight_logged(context: Any, machine: str) -> None:
    names, *wanted = cells(context.table)
    lines = observing.log_lines(context.world.fleet.machine(machine).hive_log, "preflight")
    seen = [[str(line.get(name, "")) for name in names] for line in lines]
    assert seen[: len(wanted)] == wanted, lines
