"""The espeak-ng synthesiser, called as a C library: no program, no shell, no sound card."""

import ctypes
import shutil
import tempfile
from pathlib import Path

import espeakng_loader
import numpy as np

SYNCHRONOUS, DO_NOT_EXIT = 2, 0x8000  # espeak_AUDIO_OUTPUT, espeakINITIALIZE_*: as in espeak's speak_lib.h
CHARACTERS, UTF8 = 1, 1  # espeak_POSITION_TYPE, espeakCHARS_*
PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "range": 4, "gap": 7}  # espeak_PARAMETER
SamplesCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Synthesiser:
    """One voice box. The same calls in the same order give the same samples, in any process.

    The library keeps the phase of its pitch flutter from one call to the next, and neither the seed nor
    `espeak_Terminate` resets it; so every instance loads a private copy of the library.
    """

    def __init__(self, seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = espeakng_loader.get_library_path()
            self.library = ctypes.CDLL(str(shutil.copy(library, Path(folder, Path(library).name))))
        data = espeakng_loader.get_data_path().encode()
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, data, DO_NOT_EXIT)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng does not start with the data in {data.decode()}")
        self.chunks: list[bytes] = []
        self.callback = SamplesCallback(
            self.receive_samples
        )  # kept, or it would be collected while the library holds it
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))  # by default the clock seeds breath and consonants

    def receive_samples(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int | None) -> int:
        if samples and count > 0:
            self.chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def synthesise_text(self, text: str, voice: str, **parameters: int) -> np.ndarray:
        """float32 samples at `self.rate` Hz, shape (n,).

        Args:
            voice: language and variant, as `en-us+f2`.
            parameters: all of PARAMETERS, since one that is left out keeps the last call's value: rate in words a
                minute (80-450); volume in percent; pitch and its range (0-99); gap between words in 10 ms.
        """
        self.chunks.clear()
        done = [self.library.espeak_SetVoiceByName(voice.encode())]
        done += [self.library.espeak_SetParameter(number, parameters[name], 0) for name, number in PARAMETERS.items()]
        words = text.encode() + b"\0"
        size = ctypes.c_size_t(len(words))
        done += [self.library.espeak_Synth(words, size, 0, CHARACTERS, 0, UTF8, None, None)]
        done += [self.library.espeak_Synchronize()]
        if any(done):
            raise RuntimeError(f"espeak-ng refuses {voice!r}, {parameters} or {text!r}: codes {done}")
        return np.frombuffer(b"".join(self.chunks), np.int16).astype(np.float32) / 32768
