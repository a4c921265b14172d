"""One download in a separate process, which `bench download` times.

python -m benchmarks.download_once ARTIFACTS URL
"""

import sys
from pathlib import Path

from pipeline.runtime.progress import SilentProgress
from pipeline.sources import catalogue, download

if __name__ == "__main__":
    download.download(Path(sys.argv[1]), catalogue.resolve_source(sys.argv[2], environment={}), SilentProgress())
