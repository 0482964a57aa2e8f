"""
Read image files, each in a process of its own, and print what that takes.

`python measured_reading.py READER FILE ...` with the path of `image_reader.py`, which needs nothing but Pillow: so the
memory of these processes is the reader's. Prints one JSON object for each file.
"""

import importlib.util
import json
import os
import resource
import sys
import time


def read(read_image_file, path: str) -> dict:
    start = time.process_time()
    try:
        image = read_image_file(path)
        outcome = {"size": image.size}
    except Exception as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"file": os.path.basename(path), "seconds": time.process_time() - start, "megabytes": megabytes} | outcome


def main() -> None:
    spec = importlib.util.spec_from_file_location("image_reader", sys.argv[1])
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Image.init()
    for path in sys.argv[2:]:
        process = os.fork()
        if process == 0:
            print(json.dumps(read(module.read_image_file, path)), flush=True)
            os._exit(0)
        os.waitpid(process, 0)


if __name__ == "__main__":
    main()
