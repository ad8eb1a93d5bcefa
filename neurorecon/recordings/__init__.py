"""Disk <-> `Trial`: the only place that knows file formats."""

from neurorecon.recordings.array_files import load_array
from neurorecon.recordings.arrays import import_arrays
from neurorecon.recordings.cuts import parse_splits
from neurorecon.recordings.prepared import PreparedRecording, Windows, prepare
from neurorecon.recordings.sensorium import Recording, open_recording
from neurorecon.recordings.sensorium_writer import write_sensorium
from neurorecon.recordings.trial import BEHAVIOUR, TIERS, Trial
from neurorecon.recordings.validation import as_target

__all__ = [
    "BEHAVIOUR",
    "TIERS",
    "PreparedRecording",
    "Recording",
    "Trial",
    "Windows",
    "as_target",
    "import_arrays",
    "load_array",
    "open_recording",
    "parse_splits",
    "prepare",
    "write_sensorium",
]
