-- KEYS: streams. ARGV: group. Reply: how many of their entries were not delivered to anybody.
-- Not XINFO's lag: it is null as soon as an entry was deleted.
local waiting = 0
for _, key in ipairs(KEYS) do
  local length = redis.call('XLEN', key)
  if length > 0 then
    local pending = redis.pcall('XPENDING', key, ARGV[1])
    waiting = waiting + length
    if not pending.err then waiting = waiting - pending[1] end
  end
end
return math.max(waiting, 0)
