// An app with one of the Go SDKs: `app SCENARIO`; the page above says what a scenario is. RudderStack's SDK has the same
// interface: tests/sdk/sdk_apps.py builds this file with either import, and with settings_*.go.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"sync"
	"time"

	analytics "github.com/segmentio/analytics-go/v3"
)

type call struct {
	Type, UserId, MessageId, Event, Name, GroupId, PreviousId string
	Properties, Traits, Context                                map[string]interface{}
	Timestamp                                                  time.Time
}

type scenario struct {
	Key     string
	Urls    []string
	Batch   int
	Gzip    bool
	Threads int
	PauseS  float64 `json:"pause_s"`
	LingerS float64 `json:"linger_s"`
	Calls   []call
}

type ids struct {
	sync.Mutex
	seen map[string]bool
}

func (set *ids) add(id string) {
	set.Lock()
	set.seen[id] = true
	set.Unlock()
}

func (set *ids) list() []string {
	list := []string{}
	for id := range set.seen {
		list = append(list, id)
	}
	sort.Strings(list)
	return list
}

var failed, refused = &ids{seen: map[string]bool{}}, &ids{seen: map[string]bool{}}

type callback struct{}

func (callback) Success(analytics.Message) {}

func (callback) Failure(message analytics.Message, err error) {
	encoded, _ := json.Marshal(message)
	var known struct{ MessageId string }
	json.Unmarshal(encoded, &known)
	failed.add(known.MessageId)
	fmt.Fprintln(os.Stderr, known.MessageId, err)
}

func message(c call) analytics.Message {
	var context *analytics.Context
	if c.Context != nil {
		context = &analytics.Context{Extra: c.Context}
	}
	switch c.Type {
	case "identify":
		return analytics.Identify{MessageId: c.MessageId, UserId: c.UserId, Traits: c.Traits, Timestamp: c.Timestamp, Context: context}
	case "track":
		return analytics.Track{MessageId: c.MessageId, UserId: c.UserId, Event: c.Event, Properties: c.Properties, Timestamp: c.Timestamp, Context: context}
	case "page":
		return analytics.Page{MessageId: c.MessageId, UserId: c.UserId, Name: c.Name, Properties: c.Properties, Timestamp: c.Timestamp, Context: context}
	case "screen":
		return analytics.Screen{MessageId: c.MessageId, UserId: c.UserId, Name: c.Name, Properties: c.Properties, Timestamp: c.Timestamp, Context: context}
	case "group":
		return analytics.Group{MessageId: c.MessageId, UserId: c.UserId, GroupId: c.GroupId, Traits: c.Traits, Timestamp: c.Timestamp, Context: context}
	case "alias":
		return analytics.Alias{MessageId: c.MessageId, UserId: c.UserId, PreviousId: c.PreviousId, Timestamp: c.Timestamp, Context: context}
	}
	panic("unknown call " + c.Type)
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	var s scenario
	if err := json.Unmarshal(text, &s); err != nil {
		panic(err)
	}
	var clients []analytics.Client
	for _, url := range s.Urls {
		config := analytics.Config{Endpoint: url, BatchSize: s.Batch, Interval: 100 * time.Millisecond, Callback: callback{}}
		apply(&config, s.Gzip)
		client, err := analytics.NewWithConfig(s.Key, config)
		if err != nil {
			panic(err)
		}
		clients = append(clients, client)
	}
	var workers sync.WaitGroup
	var count sync.Mutex
	made := 0
	for k := 0; k < s.Threads; k++ {
		workers.Add(1)
		go func(k int) {
			defer workers.Done()
			for n := k; n < len(s.Calls); n += s.Threads {
				for _, client := range clients {
					if err := client.Enqueue(message(s.Calls[n])); err != nil {
						refused.add(s.Calls[n].MessageId)
					}
				}
				count.Lock()
				made++
				if made == (len(s.Calls)+1)/2 {
					fmt.Println("half")
				}
				count.Unlock()
				time.Sleep(time.Duration(s.PauseS * float64(time.Second)))
			}
		}(k)
	}
	workers.Wait()
	time.Sleep(time.Duration(s.LingerS * float64(time.Second)))
	began := time.Now()
	for _, client := range clients {
		client.Close()
	}
	json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"failed": failed.list(), "refused": refused.list(), "shutdown_s": time.Since(began).Seconds(),
	})
}
