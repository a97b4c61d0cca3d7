/*
 * errors.c - the one place where a status of the engine becomes an error of PostgreSQL, and where UTF-8 from servers and
 * other sessions becomes text that this database and this client can show.
 */
#include "compat.h"
#include "backend.h"

#include "access/xact.h"
#include "catalog/namespace.h"

void
dfl_raise(const struct dfl_error *err, const char *hint)
{
	const char *s = dfl_status_info(err->status)->sqlstate;
	char	   *text = dfl_text_from_wire(err->text, strlen(err->text));

	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(s[0], s[1], s[2], s[3], s[4])),
			 errmsg_internal("%s", text[0] != '\0' ? text : dfl_status_info(err->status)->text),
			 hint ? errhint("%s", hint) : 0));
	pg_unreachable();
}

void
dfl_warn(const char *text)
{
	ereport(WARNING, (errmsg_internal("%s", dfl_text_from_wire(text, strlen(text)))));
}

/* --------------------------------------------------------------------- texts */

/* Has this encoding the character? Without conversion to it, or as UTF-8, it has all. */
static bool
has_character(int encoding, const char *character, int len, char *converted, size_t size)
{
	Oid			proc;

	if (encoding == PG_UTF8)
	{
		memcpy(converted, character, len);
		converted[len] = '\0';
		return true;
	}
	if (encoding == PG_SQL_ASCII)
		return false;
	proc = FindDefaultConversionProc(PG_UTF8, encoding);
	return OidIsValid(proc) && compat_convert(proc, PG_UTF8, encoding, character, len, converted, (int) size);
}

/* One character for this database and this client, or its escape. `escape` is what an escape begins with. */
static void
append_character(StringInfo out, const char *character, int len, const char *escape)
{
	char		database[4 * MAX_CONVERSION_GROWTH + 1];
	char		client[4 * MAX_CONVERSION_GROWTH + 1];
	uint32		code;

	/* The database's form last: it is what is appended. */
	if ((pg_get_client_encoding() == PG_SQL_ASCII ||
		 has_character(pg_get_client_encoding(), character, len, client, sizeof(client))) &&
		has_character(GetDatabaseEncoding(), character, len, database, sizeof(database)))
	{
		appendStringInfoString(out, database);
		return;
	}
	code = (uint32) utf8_to_unicode((const unsigned char *) character);
	if (code <= 0xffff)
		appendStringInfo(out, "%su%04x", escape, code);
	else
		appendStringInfo(out, "%su%04x%su%04x", escape, 0xd800 + ((code - 0x10000) >> 10), escape,
						 0xdc00 + ((code - 0x10000) & 0x3ff));
}

/* Length of the character at s, 0 when that is no UTF-8. */
static int
character_length(const char *s, size_t left)
{
	int			len = pg_utf_mblen((const unsigned char *) s);

	if ((size_t) len > left || !pg_utf8_islegal((const unsigned char *) s, len))
		return 0;
	return len;
}

/* Everything but ASCII. Returns how many bytes of text it took. */
static size_t
append_wide(StringInfo out, const char *text, size_t left, const char *escape)
{
	int			n = character_length(text, left);

	/* Conversions look into catalogs, which needs a transaction; there is one in all but the odd message. */
	if (n > 0 && text[0] != '\0' && IsTransactionState())
		append_character(out, text, n, escape);
	else
		appendStringInfo(out, "%sx%02x", escape, (unsigned char) text[0]);
	return n > 0 ? (size_t) n : 1;
}

static bool
is_plain(char c)
{
	return (unsigned char) c < 0x80 && c != '\0';
}

char *
dfl_text_from_wire(const char *text, size_t len)
{
	StringInfoData out;

	initStringInfo(&out);
	for (size_t i = 0; i < len;)
	{
		size_t		plain = i;

		while (plain < len && is_plain(text[plain]))
			plain++;
		appendBinaryStringInfo(&out, text + i, (int) (plain - i));
		i = plain;
		if (i < len)
			i += append_wide(&out, text + i, len - i, "\\");
	}
	return out.data;
}

/* A \uXXXX in JSON that its reader here could not turn into a character. */
static bool
is_unreadable_escape(const char *text, size_t left)
{
	char		digits[5] = "";
	unsigned long code;

	if (left < 6 || text[1] != 'u')
		return false;
	memcpy(digits, text + 2, 4);
	/* What is no escape stays none: it is for the parser to refuse. */
	if (strspn(digits, "0123456789abcdefABCDEF") != 4)
		return false;
	code = strtoul(digits, NULL, 16);
	if (code == 0 || (code >= 0xd800 && code <= 0xdfff))
		return true;
	return code >= 0x80 && (GetDatabaseEncoding() != PG_UTF8 || pg_get_client_encoding() != PG_UTF8);
}

char *
dfl_json_from_wire(const char *text, size_t len)
{
	StringInfoData out;

	initStringInfo(&out);
	for (size_t i = 0; i < len;)
	{
		size_t		plain = i;

		while (plain < len && is_plain(text[plain]) && text[plain] != '\\')
			plain++;
		appendBinaryStringInfo(&out, text + i, (int) (plain - i));
		i = plain;
		if (i == len)
			break;
		if (text[i] == '\\')
		{
			/* An escape is copied with what it escapes; one that cannot be read is itself escaped, and shown. */
			if (is_unreadable_escape(text + i, len - i))
				appendStringInfoChar(&out, '\\');
			appendBinaryStringInfo(&out, text + i, (int) Min(2, len - i));
			i += Min(2, len - i);
		}
		else
			i += append_wide(&out, text + i, len - i, "\\\\");
	}
	return out.data;
}
