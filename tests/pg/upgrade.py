"""SQL objects of the extension's versions: which versions the tree keeps, what a database has of one, and what differs."""

import contextlib
import itertools
import re
import subprocess

import psycopg

SYMBOL = re.compile(r"AS\s+'MODULE_PATHNAME'\s*,\s*'(\w+)'", re.IGNORECASE)

# What makes an object what it is, as text. Privileges that are the default are the same as none said.
FACTS = {
    "function": """
        SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid) || p.prosrc
        FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid""",
    "who may call": """
        SELECT p.oid::regprocedure::text, string_agg(a::text, ' ' ORDER BY a::text)
        FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid,
             aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a GROUP BY p.oid""",
    "view": """
        SELECT c.oid::regclass::text, pg_get_viewdef(c.oid) || coalesce(c.reloptions::text, '')
        FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid WHERE c.relkind = 'v'""",
    "who may select": """
        SELECT c.oid::regclass::text, string_agg(a::text, ' ' ORDER BY a::text)
        FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid,
             aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a GROUP BY c.oid""",
    "column": """
        SELECT attrelid::regclass || '.' || attname, attnum || ' ' || format_type(atttypid, atttypmod)
        FROM pg_attribute JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = attrelid WHERE attnum > 0""",
    "comment": """
        SELECT pg_describe_object(classid, objid, objsubid), obj_description(objid, classid::regclass::name) FROM member m""",
    "privileges that dumps leave out": """
        SELECT pg_describe_object(i.classoid, i.objoid, i.objsubid), (SELECT string_agg(a::text, ' ' ORDER BY a::text)
                                                                     FROM aclexplode(i.initprivs) a)
        FROM pg_init_privs i JOIN member m ON m.classid = i.classoid AND m.objid = i.objoid""",
    "member": """
        SELECT type || ' ' || identity, 'there' FROM member m, pg_identify_object(classid, objid, objsubid)""",
}
MEMBER = """
    WITH member AS MATERIALIZED (
        SELECT d.classid, d.objid, d.objsubid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
        WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'dflockd')"""

# One value of each type that an argument may have; each call has a key of its own.
VALUES = {"integer": "5", "bigint": "2", "double precision": "0", "boolean": "false"}
TOKEN = "00000000000000000123456789abcdef"
# Errors of a function that works: of locks, of arguments, of a state.
ORDINARY = ("LK", "22", "55", "40001")
_keys = itertools.count()


def versions(directory):
    """The versions that have a script of their own, the oldest first."""
    found = [path.stem.split("--")[1] for path in directory.glob("dflockd--*.sql") if path.stem.count("--") == 1]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def newest(directory):
    """What CREATE EXTENSION makes."""
    return re.search(r"^default_version *= *'(.*)'", (directory / "dflockd.control").read_text(), re.M).group(1)


def missing_symbols(directory, library):
    """What the scripts of a directory name, also old ones, and the library has not."""
    named = {symbol for script in directory.glob("dflockd--*.sql") for symbol in SYMBOL.findall(script.read_text("utf-8"))}
    listed = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in listed.splitlines()}
    assert named
    return sorted(name for symbol in named for name in (symbol, f"pg_finfo_{symbol}") if name not in exported)


@contextlib.contextmanager
def database(cluster, name, *statements):
    """A session in a database of its own, where these statements have run."""
    cluster.psql(f"CREATE DATABASE {name}")
    with psycopg.connect(cluster.dsn(dbname=name), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
        yield connection
    cluster.psql(f"DROP DATABASE {name}")


def catalog(connection):
    """{(what, object): as it is}."""
    connection.execute("SET search_path = pg_catalog, public")
    return {(what, of): fact for what, sql in FACTS.items() for of, fact in connection.execute(MEMBER + sql)}


def differences(cluster, old, new):
    """What a database that came from an old version has otherwise than one that began with the new one."""
    with database(cluster, "updated", f"CREATE EXTENSION dflockd VERSION '{old}'",
                  f"ALTER EXTENSION dflockd UPDATE TO '{new}'") as connection:
        updated = catalog(connection)
    with database(cluster, "fresh", f"CREATE EXTENSION dflockd VERSION '{new}'") as connection:
        fresh = catalog(connection)
    assert fresh
    return sorted(f"{what} {of}" for what, of in updated.keys() | fresh.keys()
                  if updated.get((what, of), "?") != fresh.get((what, of), "?"))


def value(kind, name):
    return VALUES[kind] if kind != "text" else f"'{TOKEN}'" if name == "token" else f"'k{next(_keys)}'"


def calls(connection):
    """A statement for each function and procedure of the extension, and for each view."""
    rows = connection.execute(MEMBER + """
        SELECT p.oid::regproc::text, p.prokind::text,
               ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS a(t, n) ORDER BY n),
               p.proargnames
        FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid ORDER BY p.oid""").fetchall()
    made = [("CALL " if kind == "p" else "SELECT * FROM ") + f"{name}({', '.join(map(value, types, names or []))})"
            for name, kind, types, names in rows]
    views = connection.execute(MEMBER + """
        SELECT c.oid::regclass::text FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
        WHERE c.relkind = 'v'""").fetchall()
    return made + [f"SELECT * FROM {name}" for (name,) in views]


def broken(connection):
    """Of all these calls, those that do not work: [(statement, error)]. A lock that is not held is no such error."""
    bad, good = [], 0
    statements = calls(connection)
    for statement in statements:
        try:
            connection.execute(statement)
            good += 1
        except psycopg.Error as error:
            if connection.closed or not (error.sqlstate or "").startswith(ORDINARY):
                bad.append((statement, str(error)))
            if connection.closed:
                break
    assert statements and (bad or good > len(statements) / 2), f"{good} of {len(statements)} calls succeeded"
    return bad
