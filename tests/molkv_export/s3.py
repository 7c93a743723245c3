"""The objects of a bucket of the test's server, read and written without our own code."""

from __future__ import annotations

from pathlib import Path

import boto3


class Bucket:
    """A bucket."""

    def __init__(self, url: str) -> None:
        """Connect to the bucket s3://NAME."""
        self.url = url
        self._name = url.removeprefix("s3://")
        self._client = boto3.client("s3")

    def put(self, url: str, data: bytes) -> None:
        """Write an object."""
        self._client.put_object(Bucket=self._name, Key=self._key(url), Body=data)

    def put_folder(self, folder: Path, name: str) -> str:
        """Write the files of a folder; return the URL of the copy."""
        for path in folder.iterdir():
            self.put(f"{self.url}/{name}/{path.name}", path.read_bytes())
        return f"{self.url}/{name}"

    def remove(self, url: str) -> None:
        """Remove an object."""
        self._client.delete_object(Bucket=self._name, Key=self._key(url))

    def contents(self, url: str) -> dict[str, bytes]:
        """Return the files of a folder by name."""
        prefix = self._key(url) + "/"
        listed = self._client.list_objects_v2(Bucket=self._name, Prefix=prefix).get("Contents", [])
        keys = [entry["Key"] for entry in listed]
        bodies = {key: self._client.get_object(Bucket=self._name, Key=key)["Body"] for key in keys}
        return {key.removeprefix(prefix): body.read() for key, body in bodies.items()}

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _key(self, url: str) -> str:
        return url.removeprefix(f"{self.url}/")
