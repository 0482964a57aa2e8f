"""
Read image files, each in a process of its own, and print what that takes.

`python measured_reading.py FILE ...`. The reader needs nothing but Pillow, so the memory of these processes is its own.
Prints one JSON object for each file.
"""

import json
import os
import resource
import sys
import time

from PIL import Image

import showo_hf_command


showo_hf_command.prepare()  # the reader without the package's torch

from showo_hf.processing.image_reader import read_image_file  # noqa: E402


def read(path: str) -> dict:
    start = time.process_time()
    try:
        image = read_image_file(path)
        outcome = {"size": image.size}
    except Exception as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"file": os.path.basename(path), "seconds": time.process_time() - start, "megabytes": megabytes} | outcome


def main() -> None:
    assert "torch" not in sys.modules
    Image.init()
    for path in sys.argv[1:]:
        process = os.fork()
        if process == 0:
            print(json.dumps(read(path)), flush=True)
            os._exit(0)
        os.waitpid(process, 0)


if __name__ == "__main__":
    main()
