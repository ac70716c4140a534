#!/usr/bin/env bash
# Expected: "share > 0.05" finds the same rows of a float32 column in whatever reads the parquet
# file. A mask of exactly 5 % of the pixels is found by pyarrow, which compares the float32, a little
# above 0.05, with the double 0.05; DuckDB makes a float32 of the number, too, and finds it equal.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment pyarrow==26.0.1 duckdb==2.0.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

pixels = np.zeros(100, bool)
pixels[:5] = True
share = np.float32(pixels.mean())
parquet.write_table(pa.table({"share": pa.array([share], pa.float32())}), "a.parquet")
by_pyarrow = parquet.read_table("a.parquet", filters=pc.field("share") > 0.05).num_rows
by_duckdb = duckdb.sql("select count(*) from 'a.parquet' where share > 0.05").fetchall()[0][0]
as_double = duckdb.sql("select count(*) from 'a.parquet' where share > 0.05::double").fetchall()[0][0]
print("a share of exactly 5 %, rows with share > 0.05: pyarrow", by_pyarrow, "DuckDB", by_duckdb)
print("DuckDB with 0.05::double:", as_double)
assert (by_pyarrow, by_duckdb, as_double) == (1, 0, 1)
PYTHON
