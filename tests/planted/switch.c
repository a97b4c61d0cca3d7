/*
 * switch.c - which planted bug (core/planted.h) is switched on in this process: the number in the
 * environment variable PLANTED_BUG. Part of builds with PLANT=1 and of no other.
 */
#include <stdlib.h>

#include "planted.h"

int dfl_planted;

__attribute__((constructor)) static void read_switch(void)
{
    const char *number = getenv("PLANTED_BUG");

    dfl_planted = number ? atoi(number) : 0;
}
