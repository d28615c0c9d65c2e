"""One door to every base: from a folder, from the hub, or trained here."""

from importlib.metadata import version

from loratory.bases.prepare import prepare_folder, prepare_hub
from loratory.data.files import sha256
from loratory.domains.questions import examples, read_records
from loratory.training.job import Job
from loratory.training.pretrain import pretrain


def prepare_base(name, entry, general, tasks, ears, device, checkpoints, out) -> None:
    """Writes the base's folder, whole.

    Args:
        entry: config entry. general: {domain: folder of general data}; tasks: {domain: its task options}.
        ears: folder of the Whisper base that a causal base hears with, or None.
    """
    if entry.path:
        prepare_folder(entry.path, name, entry, out)
    elif entry.hub:
        prepare_hub(name, entry, out)
    else:
        corpora, digests = {}, {}
        for domain in entry.pretrain.domains:
            records = read_records(general[domain], "train")
            corpora[domain] = examples(domain, records, tasks[domain], entry.family)
            digests[domain] = sha256(f"{general[domain]}/train.parquet")
        facts = {"data_sha256": digests, "torch": version("torch")}
        job = Job(device, checkpoints, f"base {name}", entry=entry.model_dump(mode="json"), ears=str(ears), **facts)
        pretrain(name, entry, corpora, ears, job, out, **facts)
