"""What must be there before a service starts: said by the command line, and again where BentoML starts it."""

from deploykit.serving.access.jwt import require_provider
from deploykit.serving.access.rate_limits import require_store
from deploykit.serving.privacy.person_names import require_model
from deploykit.serving.privacy.records import require_folder
from deploykit.serving.settings import Settings, require_keys, require_signer


def require(settings: Settings) -> None:
    """Makes sure that a process would find what its settings name; what is only away for now may come back.

    Raises:
        InputError: a file is missing or damaged, or an address makes no sense.
        MissingExtraError: a library that a setting asks for is not installed.
        StorageError: records cannot be written.
    """
    require_keys(settings)
    require_signer(settings)
    require_folder(settings)
    require_model(settings)
    require_provider(settings.jwt)
    require_store(settings.redis)
