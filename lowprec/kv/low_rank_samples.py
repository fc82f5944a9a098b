"""What bases are fitted to: see `lowprec.kv.samples`."""

from lowprec.kv.samples import token_rows as token_rows
from lowprec.kv.samples import whole_samples as whole_samples
