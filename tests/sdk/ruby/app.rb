# An app with RudderStack's Ruby SDK: `ruby app.rb SCENARIO`; the page above says what a scenario is.
require "json"
require "stringio" # the SDK uses it to compress, and does not load it
require "rudder-sdk-ruby"

Rudder::Analytics::Logging.logger = Logger.new($stderr, level: Logger::ERROR)
scenario = JSON.parse(File.read(ARGV.fetch(0)))
lock = Mutex.new
failed = []
refused = []
made = 0

clients = scenario["urls"].map do |url|
  Rudder::Analytics.new(
    write_key: scenario["key"], data_plane_url: url, ssl: false, gzip: scenario["gzip"], batch_size: scenario["batch"],
    on_error_with_messages: proc { |_, _, messages| lock.synchronize { failed.concat(messages.map { |one| one[:messageId] }) } }
  )
end

def fields(call)
  common = { user_id: call["userId"], message_id: call["messageId"], timestamp: Time.iso8601(call["timestamp"]) }
  common[:context] = call["context"].transform_keys(&:to_sym) if call["context"]
  %w[event name category properties traits].each { |name| common[name.to_sym] = call[name] if call[name] }
  common[:group_id] = call["groupId"] if call["groupId"]
  common[:previous_id] = call["previousId"] if call["previousId"]
  common
end

threads = Array.new(scenario["threads"]) do |k|
  Thread.new do
    scenario["calls"].each_with_index do |call, n|
      next unless n % scenario["threads"] == k

      clients.each do |client|
        taken = begin
          client.public_send(call["type"], fields(call))
        rescue StandardError => e
          warn "#{call['messageId']}: #{e}"[0, 300]
          false
        end
        lock.synchronize { refused << call["messageId"] } unless taken
      end
      lock.synchronize do
        made += 1
        if made == (scenario["calls"].length + 1) / 2
          puts "half"
          $stdout.flush
        end
      end
      sleep scenario["pause_s"]
    end
  end
end
threads.each(&:join)
sleep scenario["linger_s"]
began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
clients.each(&:flush)
shutdown_s = Process.clock_gettime(Process::CLOCK_MONOTONIC) - began
puts JSON.generate({ failed: failed.uniq.sort, refused: refused.uniq.sort, shutdown_s: shutdown_s })
