-- KEYS: sorted set, the key that has its generation and epoch
-- ARGV: 1 generation, 2 epoch, 3 '1' to overwrite what is newer, 4 body of the second key, then scores and members
-- Gives the same as write.lua.
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'string' and kind ~= 'none' then redis.call('UNLINK', KEYS[2]) end
local found = redis.call('GET', KEYS[2])
if found and ARGV[3] ~= '1' then
  local e, g = string.match(found, '^{"seq":%w+,"epoch":(%d+),"generation":(%d+)')
  if g then
    g, e = tonumber(g), tonumber(e)
    if g > tonumber(ARGV[1]) then return { 2, g, e, 0, 0 } end
    if g == tonumber(ARGV[1]) and e > tonumber(ARGV[2]) then return { 1, g, e, 0, 0 } end
  end
end
redis.call('UNLINK', KEYS[1])
for from = 5, #ARGV, 1000 do
  redis.call('ZADD', KEYS[1], unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
redis.call('SET', KEYS[2], ARGV[4])
return { 0, 0, 0, 0, 0 }
