// dflockd's own Go client behind the pipe that ../comers.py describes. To be built in a module that requires the client.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mtingers/dflockd/client"
)

// Both kinds of the client's holds.
type comer interface {
	Acquire(context.Context) (bool, error)
	Enqueue(context.Context) (string, error)
	Wait(context.Context, time.Duration) (bool, error)
	Release(context.Context) error
	Token() string
}

var (
	background = context.Background()
	servers    = strings.Split(os.Getenv("DFLOCK_SERVERS"), ",")
	comers     = map[string]comer{}
)

func number(word string) int {
	value, err := strconv.Atoi(word)
	if err != nil {
		panic(err)
	}
	return value
}

// The client takes 0 for "not set": the shortest wait that it can ask for is a second.
func seconds(word string) time.Duration {
	return time.Duration(max(number(word), 1)) * time.Second
}

func outcome(granted bool, held comer, err error) string {
	switch {
	case err != nil:
		return "error " + err.Error()
	case granted:
		return "held " + held.Token()
	}
	return "timeout"
}

func acquire(key string, held comer) string {
	comers[key] = held
	granted, err := held.Acquire(background)
	return outcome(granted, held, err)
}

var requests = map[string]func(words []string) string{
	"lock": func(w []string) string {
		return acquire(w[0], &client.Lock{Key: w[0], AcquireTimeout: seconds(w[1]), LeaseTTL: number(w[2]), Servers: servers})
	},
	"slot": func(w []string) string {
		return acquire(w[0], &client.Semaphore{Key: w[0], AcquireTimeout: seconds(w[1]), LeaseTTL: number(w[2]),
			Limit: number(w[3]), Servers: servers})
	},
	"enqueue": func(w []string) string {
		held := &client.Lock{Key: w[0], LeaseTTL: number(w[1]), Servers: servers}
		comers[w[0]] = held
		status, err := held.Enqueue(background)
		if err == nil && status == "queued" {
			return status
		}
		return outcome(status == "acquired", held, err)
	},
	"wait": func(w []string) string {
		granted, err := comers[w[0]].Wait(background, seconds(w[1]))
		return outcome(granted, comers[w[0]], err)
	},
	"release": func(w []string) string {
		err := comers[w[0]].Release(background)
		delete(comers, w[0])
		if err != nil {
			return "error " + err.Error()
		}
		return "released"
	},
	"fence": func([]string) string {
		return "-" // this client shows none
	},
	"shard": func(w []string) string {
		return strconv.Itoa(client.CRC32Shard(w[1], number(w[0])))
	},
}

func main() {
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Split(lines.Text(), " ")
		fmt.Println(requests[words[0]](words[1:]))
	}
}
