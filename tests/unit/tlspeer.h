/*
 * tlspeer.h - the other end of the TLS tests: certificates made on the spot, and a network in
 * memory with a TLS server, or anything else, behind it. No socket, no thread, no time.
 */
#ifndef TLSPEER_H
#define TLSPEER_H

#include <openssl/ssl.h>

#include "net.h"

/* A certificate, its key, and both as files of the test's own folder. */
struct identity {
    X509 *cert;
    EVP_PKEY *key;
    char cert_path[128], key_path[128];
};

struct identity_wish {
    const char *file; /* without the ending */
    const char *common_name;
    const char
        *names; /* subjectAltName in OpenSSL's words: "DNS:db.test,IP:127.0.0.1"; NULL = none */
    const struct identity *issuer; /* NULL = itself */
    bool ca;
    int from_days, to_days; /* from now; both 0 = yesterday to next year */
};
void identity_make(struct identity *out, const char *folder, const struct identity_wish *wish);
void identity_free(struct identity *id);

/* A transport in memory. Its owner is the test: close() only notes that it was called. */
struct wire {
    struct dfl_transport base; /* must be the first member */
    SSL_CTX *ctx;
    SSL *server;    /* NULL: a peer without TLS */
    BIO *in, *out;  /* what the server has to read, and has written */
    size_t chunk;   /* most bytes per read and write; 0 = as many as there are */
    long cut_after; /* the client sees EOF behind so many bytes; -1 = never */
    long delivered;
    bool shut;                     /* nobody is there any more: EOF when everything has been read */
    bool full;                     /* writes get AGAIN */
    long room;                     /* so many bytes until it is full; -1 = never */
    int broken_read, broken_write; /* answer with an error */
    char seen_name[256];           /* SNI */
    char received[70000];          /* what the server has read */
    size_t received_len;
    int closed, abandoned, writes;
    bool accepted;
};
/* id NULL: no TLS. The wire answers as soon as the client reads. */
void wire_open(struct wire *w, const struct identity *id, int min_version, int max_version);
void wire_require_client(struct wire *w, const char *ca_path);
void wire_start(struct wire *w); /* after the context has been changed to taste */
void wire_pump(struct wire *w);  /* lets the server do what it can */
void wire_say(struct wire *w, const void *buf,
              size_t len); /* the server writes; plain without TLS */
void wire_free(struct wire *w);

#endif
